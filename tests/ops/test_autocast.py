"""Every op keeps its contract under autocast: the same numbers, to the bit, as without."""

import pytest
import torch
from torch.nn.functional import normalize

from bmojo_neuron.ops import load_ops
from bmojo_neuron.ops.memory_attention import FEWEST_TILED, Memory, Visibility

OPS = load_ops("torch")


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def memories(length: int, dtype: torch.dtype) -> list[Memory]:
    q, k, v = (drawn(2, n, s, 6).to(dtype) for n, s in ((4, length), (2, 9), (2, 10)))
    here, before = (torch.arange(n, dtype=torch.int32).expand(2, -1) for n in (length, 9))
    seen = Visibility(here + 9, before)
    return [Memory(q, k, v[:, :, :9], seen, drawn(2, 4, 9).to(dtype)), Memory(q, k, k, seen)]


def scan(length: int) -> tuple[torch.Tensor, ...]:
    x, b, c = drawn(2, length, 3, 4), drawn(2, length, 3, 5), drawn(2, length, 3, 6)[..., :5]
    return x, drawn(2, length, 3).abs(), -drawn(3).abs(), b, c, drawn(2, 3, 4, 5)


def selective(length: int) -> tuple[torch.Tensor, ...]:
    x, dt, b, c = (drawn(2, length, width) for width in (7, 7, 5, 5))
    return x, dt.abs(), -drawn(7, 5).abs(), b, c, drawn(2, 7, 5)


def delta(length: int) -> tuple[torch.Tensor, ...]:
    q, k, v = (normalize(drawn(2, length, 3, width), dim=-1) for width in (5, 6, 4))
    g, beta = -drawn(2, length, 3).abs(), drawn(2, length, 3).sigmoid()
    return q, k[..., :5], v, g, beta, drawn(2, 3, 5, 4)


def kalman(length: int) -> tuple[torch.Tensor | float, ...]:
    *given, state = delta(length)
    g, alpha = given[-2:]
    return *given[:-1], g, alpha, torch.eye(5).expand(2, 3, 5, 5), state, 0.02, 30


CALLS = {
    "ssd_scan": (OPS.ssd_scan, scan(70)),
    "ssd_scan, one token": (OPS.ssd_scan, scan(1)),
    "selective_scan": (OPS.selective_scan, selective(70)),
    "selective_scan, one token": (OPS.selective_scan, selective(1)),
    "delta_rule": (OPS.delta_rule, delta(70)),
    "delta_rule, one token": (OPS.delta_rule, delta(1)),
    "kalman_scan": (OPS.kalman_scan, kalman(70)),
    "kalman_scan, one token": (OPS.kalman_scan, kalman(1)),
    "causal_conv": (OPS.causal_conv, (drawn(2, 9, 5), drawn(5, 4), drawn(5), drawn(2, 3, 5))),
    "innovation": (
        OPS.innovation,
        (
            drawn(2, 9, 8).bfloat16(),
            drawn(4, 8),
            drawn(2, 4, 8),
            drawn(2).abs() + 0.5,
            torch.tensor([0.3]),
            32.0,
        ),
    ),
    "selection": (
        OPS.selection,
        (
            drawn(2, 9),
            torch.arange(18, dtype=torch.int32).view(2, 9),
            torch.tensor([9, 18]),
            5,
            0.1,
        ),
    ),
    "memory_attention": (OPS.memory_attention, (memories(3, torch.float32),)),
    "memory_attention, tiled": (OPS.memory_attention, (memories(FEWEST_TILED, torch.float32),)),
    "memory_attention, half": (OPS.memory_attention, (memories(3, torch.bfloat16),)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("gradient", [False, True], ids=["inference", "training"])
def test_autocast_changes_no_bit(call, gradient):
    op, args = call
    with torch.set_grad_enabled(gradient):
        expected = op(*args)
        with torch.autocast("cpu", torch.bfloat16):
            got = op(*args)
    for a, b in zip(
        *((x,) if isinstance(x, torch.Tensor) else x for x in (got, expected)), strict=True
    ):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
