"""Kernels of the kinds of the public tutorials and libraries, source unchanged, against float64.

Every kernel runs strict: what the vendor's simulator lets pass is an error here too.
"""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nki_kernels.simulator import Session
from tests.nki.kernels import matmul_stages

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


@BOTH
@pytest.mark.parametrize(
    ("stage", "shape"),
    [
        *(("basic", (128, 64, 512)), ("basic", (100, 37, 200))),
        *(("tiled", (256, 128, 512)), ("tiled", (300, 130, 700))),
        *(("hoisted", (384, 256, 1024)), ("hoisted", (130, 200, 513))),
        *(("blocked", (256, 256, 1024)), ("blocked", (384, 512, 1024))),
        *(("fully_blocked", (512, 512, 1024)), ("fully_blocked", (700, 300, 1100))),
    ],
)
def test_the_five_stages_of_matmul(
    strict: Session, stage: str, shape: tuple[int, int, int], dtype: Any
) -> None:
    K, M, N = shape
    lhsT, rhs = normal(K, M, dtype=dtype), normal(K, N, dtype=dtype, seed=1)
    found = getattr(matmul_stages, f"matmul_{stage}")(lhsT, rhs)
    left, right = wide(lhsT, rhs)
    check(found, left.T @ right, dtype)


@BOTH
def test_a_matmul_on_two_cores(strict: Session, dtype: Any) -> None:
    lhsT, rhs = normal(200, 150, dtype=dtype), normal(200, 1300, dtype=dtype)
    found = matmul_stages.matmul_fully_blocked[2](lhsT, rhs, block_m=1, block_k=1)
    left, right = wide(lhsT, rhs)
    check(found, left.T @ right, dtype)
    assert {event.core for event in strict.ledger.events} == {0, 1}
