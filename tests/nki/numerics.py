"""Inputs in the dtypes of the device, and the tolerance that their results are held to."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

FP32, BF16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)
BOTH = pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])


def normal(*shape: int, dtype: Any = FP32, scale: float = 1.0, seed: int = 0) -> Any:
    rng = np.random.default_rng([seed, *shape])
    return (scale * rng.standard_normal(shape)).astype(dtype)


def wide(*arrays: Any) -> Any:
    return [array.astype(np.float64) for array in arrays]


def check(found: Any, expected: Any, dtype: Any, roundings: int = 1) -> None:
    """Right within one rounding of an output, and its scale's share of those on the way to it."""
    assert found.shape == expected.shape
    assert found.dtype == dtype
    error = np.abs(found.astype(np.float64) - expected)
    unit = 2.0**-8 if dtype == BF16 else 2.0**-22
    on_the_way = (2.0**-19 + (roundings - 1) * unit) * np.abs(expected).max()
    assert (error <= unit * np.abs(expected) + on_the_way).all(), error.max()
