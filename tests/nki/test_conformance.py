"""Kernels of the kinds of the public tutorials and libraries, source unchanged, against float64.

Every kernel runs strict: what the vendor's simulator lets pass is an error here too.
"""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nki_kernels.simulator import Session
from tests.nki.kernels import matmul_stages, reshaping

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


@BOTH
@pytest.mark.parametrize("shape", [(128, 128), (300, 70), (64, 257)])
@pytest.mark.parametrize("way", list(reshaping.Way))
def test_a_transpose_is_exact(strict: Session, way: Any, shape: Any, dtype: Any) -> None:
    x = normal(*shape, dtype=dtype, scale=1e30)
    np.testing.assert_array_equal(reshaping.transpose(x, way=way), x.T)


@BOTH
@pytest.mark.parametrize(("rows", "inner"), [(128, (4, 8)), (150, (7, 3))])
def test_a_transpose_of_free_axes(strict: Session, rows: int, inner: Any, dtype: Any) -> None:
    x = normal(rows, inner[0] * inner[1], dtype=dtype)
    expected = x.reshape(rows, *inner).swapaxes(1, 2).reshape(x.shape)
    np.testing.assert_array_equal(reshaping.transpose_inner(x, shape2D=inner), expected)


@BOTH
@pytest.mark.parametrize(("shape", "pool"), [((32, 8, 8), 2), ((130, 9, 15), 3)])
def test_average_pooling(strict: Session, shape: Any, pool: int, dtype: Any) -> None:
    x = normal(*shape, dtype=dtype)
    C, H, W = shape
    (windows,) = wide(x.reshape(C, H // pool, pool, W // pool, pool))
    check(reshaping.average_pool(x, pool), windows.mean((2, 4)), dtype)


@BOTH
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (2, 2)])
def test_max_pooling(strict: Session, kernel: int, stride: int, dtype: Any) -> None:
    x = normal(130, 13, 11, dtype=dtype, scale=1e6)
    windows = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(1, 2))
    expected = windows[:, ::stride, ::stride].max((3, 4))
    np.testing.assert_array_equal(reshaping.max_pool(x, kernel, stride), expected)


@BOTH
@pytest.mark.parametrize("shape", [(128, 512), (3, 50, 700), (200, 1)])
def test_a_cumulative_sum(strict: Session, shape: Any, dtype: Any) -> None:
    x = normal(*shape, dtype=dtype)
    check(reshaping.cumsum(x), x.astype(np.float64).cumsum(-1), dtype)


@BOTH
def test_a_cumulative_sum_in_one_instruction(strict: Session, dtype: Any) -> None:
    x = normal(100, 900, dtype=dtype)
    check(reshaping.cumsum_one_pass(x), x.astype(np.float64).cumsum(1), dtype)


@BOTH
@pytest.mark.parametrize(("rows", "columns", "fold"), [(32, 512, 4), (70, 1000, 8), (3, 64, 1)])
def test_a_cascaded_maximum(
    strict: Session, rows: int, columns: int, fold: int, dtype: Any
) -> None:
    x = np.round(normal(rows, columns, scale=3)).astype(dtype)  # small integers: many ties
    values, indices = reshaping.cascaded_max(x, fold=fold)
    np.testing.assert_array_equal(values[:, 0], x.max(1))
    np.testing.assert_array_equal(indices[:, 0], x.argmax(1))
