"""Kernels as people write them, source unchanged, against numpy in float64."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nki_kernels.simulator import NkiNotSimulated, Session, jit
from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from tests.nki.kernels.matmul import matmul_tiled
from tests.nki.kernels.rmsnorm import rmsnorm
from tests.nki.kernels.selective_scan import selective_scan_v1

RNG = np.random.default_rng(0)


def scan_reference(delta: Any, u: Any, A: Any, B: Any, C: Any) -> Any:
    delta, u, A, B, C = (x.astype(np.float64) for x in (delta, u, A, B, C))
    state, out = np.zeros_like(A), np.zeros_like(delta)
    for t in range(delta.shape[1]):
        decay = np.exp(delta[:, t, None] * A)
        state = decay * state + (delta[:, t] * u[:, t])[:, None] * B[:, t]
        out[:, t] = state @ C[:, t]
    return out


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_tiled_matmul_accumulates_over_k(strict: Session, dtype: Any) -> None:
    lhs = RNG.standard_normal((256, 128)).astype(dtype)
    rhs = RNG.standard_normal((256, 1024)).astype(dtype)
    found = matmul_tiled(lhs, rhs)
    expected = lhs.astype(np.float64).T @ rhs.astype(np.float64)
    assert found.dtype == dtype
    tolerance = 1e-4 if dtype == np.float32 else 0.3
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=5e-3, atol=tolerance)


def test_rmsnorm_with_a_last_tile_that_is_not_full(strict: Session) -> None:
    x = RNG.standard_normal((200, 96)).astype(np.float32) * 1e3
    weight = RNG.standard_normal((1, 96)).astype(np.float32)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-6) * weight
    np.testing.assert_allclose(rmsnorm(x, weight), expected, rtol=1e-5, atol=1e-6)


def test_a_selective_scan(strict: Session) -> None:
    D, S, L = 256, 4, 63
    delta = RNG.uniform(0.01, 0.2, (D, L)).astype(np.float32)
    u = RNG.standard_normal((D, L)).astype(np.float32)
    A = -RNG.uniform(0.5, 4, (D, S)).astype(np.float32)
    B, C = (RNG.standard_normal((S, L)).astype(np.float32) for _ in range(2))
    expected = scan_reference(delta, u, A, B, C)
    np.testing.assert_allclose(selective_scan_v1(delta, u, A, B, C), expected, atol=2e-5)


def test_the_ledger_lists_what_ran(strict: Session) -> None:
    lhs, rhs = np.ones((128, 128), np.float32), np.ones((128, 512), np.float32)
    matmul_tiled(lhs, rhs)
    events = strict.ledger.events
    assert [event.op for event in events] == [
        *("dma_copy", "dma_copy", "nc_matmul", "tensor_copy", "dma_copy")
    ]
    assert events[2].reads[1].shape == (128, 512)
    assert events[4].bytes == 128 * 512 * 4
    assert events[2].line[0].endswith("kernels/matmul.py")


def test_an_event_knows_regions_names_and_what_it_waits_for(strict: Session) -> None:
    def kernel() -> None:
        tile = nl.ndarray((128, 8), nl.bfloat16)
        first = nisa.memset(tile[:, 0:4], 1.0, name="left")
        second = nisa.memset(tile[64:96, 4:8], 2.0)
        assert second.depends_on(first) is second
        nisa.tensor_copy(tile[0:32, 4:8], tile[64:96, 4:8], engine=nisa.engine.gpsimd)

    jit(kernel)()
    left, right, copy = strict.ledger.events
    assert (left.name, left.free, left.writes[0].region) == ("left", 4, (0, 128, 0, 8))
    assert right.writes[0].region == (64, 96, 8, 16)
    assert right.after == (left.index,)
    assert copy.engine is nisa.engine.gpsimd
    assert copy.reads[0].region == right.writes[0].region
    assert left.writes[0].storage == copy.writes[0].storage


def test_not_simulated_says_its_name() -> None:
    import nki.collectives as collectives

    for call in (
        lambda: collectives.all_reduce([], [], None, nl.add),
        lambda: topk_sorted(),
    ):
        with pytest.raises(NkiNotSimulated, match=r"(all_reduce|topk\(sorted\)): not simulated"):
            jit(call)()


def topk_sorted() -> None:
    values = nl.zeros((16, 8), nl.bfloat16)
    nisa.topk(nl.zeros((16, 8), nl.bfloat16), nl.zeros((16, 8), nl.uint32), values, 128, True)
