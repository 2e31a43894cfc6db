"""Kernels of the kinds of the public tutorials and libraries, source unchanged, against float64.

Every kernel runs strict: what the vendor's simulator lets pass is an error here too.
"""

from typing import Any

import numpy as np
import pytest

from nki_kernels.simulator import Session
from nki_kernels.simulator import language as nl
from tests.nki.kernels import matmul_stages, recurrences, reshaping, rope
from tests.nki.numerics import BOTH, FP32, check, normal, wide


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


def linear_scan(decay: Any, x: Any, state: Any) -> Any:
    out = np.zeros_like(x)
    for t in range(x.shape[-1]):
        state = decay[..., t] * state + x[..., t]
        out[..., t] = state
    return out, state


@BOTH
@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("shape", [(1, 128, 512), (2, 150, 700)])
def test_a_linear_scan(strict: Session, shape: Any, start: bool, cores: int, dtype: Any) -> None:
    decay = np.random.default_rng(0).uniform(0.5, 1.0, shape).astype(dtype)
    x = normal(*shape, dtype=dtype)
    initial = normal(*shape[:2], scale=1e3) if start else None
    found, state = recurrences.linear_scan[cores](decay, x, initial)
    first = initial.astype(np.float64) if start else np.zeros(shape[:2])
    expected, last = linear_scan(*wide(decay, x), first)
    check(found, expected, dtype)
    check(state, last, FP32)


@BOTH
@pytest.mark.parametrize(("channels", "length"), [(128, 64), (200, 600)])
def test_a_selective_scan_with_states(
    strict: Session, channels: int, length: int, dtype: Any
) -> None:
    S, rng = 3, np.random.default_rng(1)
    dt = rng.uniform(0.01, 0.3, (channels, length)).astype(dtype)
    A = -rng.uniform(0.5, 4, (channels, S)).astype(np.float32)
    u, z = (normal(channels, length, dtype=dtype, seed=seed) for seed in (2, 3))
    B, C = (normal(S, length, dtype=dtype, seed=seed) for seed in (4, 5))
    D, initial = normal(channels, dtype=dtype), normal(channels, S, scale=10)
    found, state = recurrences.selective_scan(dt, u, A, B, C, D, z, initial)
    dt, u, A, B, C, D, z, initial = wide(dt, u, A, B, C, D, z, initial)
    decay, inputs = np.exp(dt[:, None] * A[:, :, None]), (dt * u)[:, None] * B
    states, last = linear_scan(decay, inputs, initial)
    y = ((states * C).sum(1) + D[:, None] * u) * z / (1 + np.exp(-z))
    check(found, y, dtype)
    check(state, last, FP32)


@BOTH
@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize(("shape", "taps"), [((2, 128, 64), 4), ((1, 200, 333), 3), ((1, 5, 2), 4)])
def test_a_depthwise_convolution(
    strict: Session, shape: Any, taps: int, with_state: bool, dtype: Any
) -> None:
    B, C, L = shape
    x, weight = normal(*shape, dtype=dtype), normal(C, taps, dtype=dtype)
    bias = normal(C, dtype=dtype) if with_state else None
    state = normal(B, C, taps - 1, dtype=dtype) if with_state else None
    activation = nl.silu if with_state else None
    found, last = recurrences.depthwise_conv1d(x, weight, bias, state, activation=activation)
    before = np.zeros((B, C, taps - 1), dtype) if state is None else state
    padded = np.concatenate([before, x], axis=2)
    np.testing.assert_array_equal(last, padded[:, :, L:])
    windows = np.lib.stride_tricks.sliding_window_view(padded, taps, axis=2)
    expected = (windows.astype(np.float64) * weight.astype(np.float64)[:, None]).sum(-1)
    if bias is not None:
        expected = expected + bias.astype(np.float64)[:, None]
        expected = expected / (1 + np.exp(-expected))
    check(found, expected, dtype)


@BOTH
@pytest.mark.parametrize(
    ("c_in", "c_out", "taps", "options"),
    [
        (128, 128, 3, {"padding": (1, 1)}),
        (150, 70, 5, {"stride": 2, "padding": (2, 0)}),
        (6, 200, 3, {"dilation": 3, "stride": 3, "padding": (4, 5)}),
    ],
)
def test_a_general_convolution(
    strict: Session, capsys: Any, c_in: int, c_out: int, taps: int, options: Any, dtype: Any
) -> None:
    x, weight = normal(2, c_in, 90, dtype=dtype), normal(c_out, c_in, taps, dtype=dtype)
    bias = normal(c_out, dtype=dtype)
    found = recurrences.conv1d(x, weight, bias, **options)
    assert capsys.readouterr().out == (
        f"conv1d: B=2 c_in={c_in} c_out={c_out} K={taps} -> {found.shape[2]}\n"
    )
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), options["padding"]))
    dilation, stride = options.get("dilation", 1), options.get("stride", 1)
    reach = dilation * (taps - 1) + 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=2)
    windows = windows[:, :, ::stride, ::dilation]
    expected = np.einsum("bilk,oik->bol", windows, weight.astype(np.float64))
    check(found, expected + bias.astype(np.float64)[:, None], dtype)


@BOTH
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("pairs", list(rope.Pairs))
@pytest.mark.parametrize("shape", [(128, 2, 64), (200, 3, 10)])
def test_rotary_embedding(
    strict: Session, shape: Any, pairs: Any, backward: bool, dtype: Any
) -> None:
    L, _, d = shape
    x = normal(*shape, dtype=dtype, scale=100)
    angle = np.arange(L)[:, None] * 1e4 ** (-np.arange(d // 2) / (d // 2))
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    found = rope.rope(x, cos, sin, pairs=pairs, backward=backward)
    halves = pairs is rope.Pairs.HALVES
    first, second = (
        (slice(d // 2), slice(d // 2, d)) if halves else (slice(0, d, 2), slice(1, d, 2))
    )
    turn = (cos.astype(np.float64) + (-1j if backward else 1j) * sin)[:, None]
    turned = (x[..., first].astype(np.float64) + 1j * x[..., second].astype(np.float64)) * turn
    expected = np.empty(shape)
    expected[..., first], expected[..., second] = turned.real, turned.imag
    check(found, expected, dtype)
