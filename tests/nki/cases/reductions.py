"""Reductions, scans and statistics along the free axis."""

import itertools
from typing import Any

import numpy as np

from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from tests.nki.cases.base import (
    COLUMN,
    COLUMN2,
    LIKE,
    OPS64,
    POSITIVE,
    N,
    P,
    X,
    Y,
    Z,
    case,
    normal,
    op,
)
from tests.nki.harness import Out


def scan64(first: Any, second: Any, start: Any, op0: Any, op1: Any, r0: bool, r1: bool) -> Any:
    out, state = np.empty_like(first), np.broadcast_to(start, (len(first), 1))[:, 0]
    for i in range(first.shape[1]):
        inner = op0(state, first[:, i]) if r0 else op0(first[:, i], state)
        state = op1(second[:, i], inner) if r1 else op1(inner, second[:, i])
        out[:, i] = state
    return out


CASES = [
    *(
        case(
            f"tensor_reduce-{name}-{axis}-negate={negate}",
            {"a": normal(P, 4, 9) if name != "multiply" else normal(P, 4, 3)},
            Out((P, 4)) if axis == 2 else Out((P, 1)),
            lambda t, name=name, axis=axis, negate=negate: nisa.tensor_reduce(
                t.dst, op(name), t.a, axis=axis, negate=negate
            ),
            lambda a, name=name, axis=axis, negate=negate: (
                (-1 if negate else 1)
                * {"add": np.sum, "maximum": np.max, "minimum": np.min, "multiply": np.prod}[name](
                    a, axis=axis
                ).reshape(P, -1)
            ),
        )
        for name in ("add", "maximum", "minimum", "multiply")
        for axis in (2, (1, 2))
        for negate in (False, True)
    ),
    *(
        case(
            f"tensor_tensor_scan-{op0}-{op1}-{r0}-{r1}",
            {"a": normal(P, 12), "b": normal(P, 12), "h": COLUMN},
            Out((P, 12)),
            lambda t, op0=op0, op1=op1, r0=r0, r1=r1: nisa.tensor_tensor_scan(
                *(t.dst, t.a, t.b, t.h, op(op0), op(op1)), reverse0=r0, reverse1=r1
            ),
            lambda a, b, h, op0=op0, op1=op1, r0=r0, r1=r1: scan64(
                a, b, h, OPS64[op0], OPS64[op1], r0, r1
            ),
        )
        for op0, op1, r0, r1 in [
            ("multiply", "add", False, False),
            ("multiply", "add", True, True),
            ("subtract", "maximum", False, False),
            ("subtract", "multiply", True, False),
            ("multiply", "subtract", False, True),
            ("multiply", "subtract", False, False),
        ]
    ),
    case(
        "tensor_scalar_cumulative-subtract-is-x-minus-reg",
        {"a": Y},
        LIKE,
        lambda t: nisa.tensor_scalar_cumulative(t.dst, t.a, nl.multiply, nl.subtract, 2.0),
        lambda a: scan64(a * 0, 2 * a, 0.0, lambda _, s: s, lambda s, x: x - s, False, False),
    ),
    case(
        "tensor_scalar_reduce",
        {"a": Y},
        {"dst": LIKE, "total": Out((P, 1))},
        lambda t: nisa.tensor_scalar_reduce(
            t.dst, t.a, nl.subtract, 1.5, nl.maximum, reduce_res=t.total
        ),
        lambda a: (a - 1.5, (a - 1.5).max(1, keepdims=True)),
    ),
    case(
        "tensor_scalar_cumulative-goes-on-from-the-register",
        {"a": Y, "b": Z},
        {"first": LIKE, "dst": LIKE},
        lambda t: (
            nisa.tensor_scalar_cumulative(t.first, t.a, nl.multiply, nl.add, 2.0),
            nisa.tensor_scalar_cumulative(
                *(t.dst, t.b, nl.multiply, nl.add, 3.0), reduce_cmd=nisa.reduce_cmd.reduce
            ),
        ),
        lambda a, b: (
            np.cumsum(2 * a, 1),
            (2 * a).sum(1, keepdims=True) + np.cumsum(3 * b, 1),
        ),
    ),
    *(
        case(
            f"tensor_scalar_cumulative-{name}-starts-neutral",
            {"a": sign * POSITIVE},
            LIKE,
            lambda t, name=name: nisa.tensor_scalar_cumulative(t.dst, t.a, nl.add, op(name), 0.0),
            lambda a, name=name: getattr(np, name).accumulate(a, 1),
        )
        for name, sign in (("minimum", 1), ("maximum", -1))
    ),
    case(
        "tensor_scalar_cumulative-load_reduce-starts-at-imm1",
        {"a": Y, "start": COLUMN},
        LIKE,
        lambda t: nisa.tensor_scalar_cumulative(
            *(t.dst, t.a, nl.add, nl.add, 0.0, t.start), reduce_cmd=nisa.reduce_cmd.load_reduce
        ),
        lambda a, start: start + np.cumsum(a, 1),
    ),
    *(
        case(
            f"tensor_scalar_reduce-{name}-load_reduce-negate={negate}",
            {"a": sign * POSITIVE, "start": 30 * sign * COLUMN2},
            {"dst": LIKE, "total": Out((P, 1))},
            lambda t, name=name, negate=negate: nisa.tensor_scalar_reduce(
                *(t.dst, t.a, nl.add, 0.5, op(name)),
                reduce_res=t.total,
                reduce_cmd=nisa.reduce_cmd.load_reduce,
                reduce_init=t.start,
                reduce_res_negate=negate,
            ),
            lambda a, start, reduced=reduced, negate=negate: (
                a + 0.5,
                (-1 if negate else 1) * reduced(np.concatenate([start, a + 0.5], 1), 1)[:, None],
            ),
        )
        for name, reduced, sign in (
            ("add", np.sum, 1),
            ("minimum", np.min, 1),
            ("maximum", np.max, -1),
        )
        for negate in (False, True)
    ),
    case(
        "tensor_partition_reduce",
        {"a": Y},
        Out((1, N)),
        lambda t: nisa.tensor_partition_reduce(t.dst, nl.add, t.a),
        lambda a: a.sum(0, keepdims=True),
    ),
    *(
        case(
            f"tensor_reduce-keepdims={keep}-of-axes-{axis}",
            {"a": normal(P, 4, 9)},
            Out(shape),
            lambda t, axis=axis, keep=keep: nisa.tensor_reduce(
                t.dst, nl.add, t.a, axis=axis, keepdims=keep
            ),
            lambda a, axis=axis, shape=shape: a.sum(axis=axis).reshape(shape),
        )
        for keep, axis, shape in [
            *((True, 2, (P, 4, 1)), (True, -1, (P, 4, 1)), (True, (1, 2), (P, 1, 1))),
            *((False, -1, (P, 4)), (False, (-1, -2), (P, 1))),
        ]
    ),
    *(
        case(
            f"bn_stats-of-{width}",
            {"a": X[:, :width]},
            Out((P, 6)),
            lambda t: nisa.bn_stats(t.dst, t.a),
            lambda a: np.stack([column for half in halves(a) for column in moments(half)], 1),
        )
        for width in (39, 40, 1)
    ),
    *(
        case(
            f"bn_aggr-of-{len(ends) - 1}",
            {"a": X + 1e3},
            Out((P, 2)),
            lambda t, ends=ends: aggregated(t, ends),
            lambda a: np.stack([a.mean(1), a.var(1)], 1),
        )
        for ends in ([0, N], [0, 7, 20, N])
    ),
]


def halves(a: Any) -> Any:
    return a[:, ::2], a[:, 1::2]


def moments(a: Any) -> list[Any]:
    """Count, mean, variance * count; zeros for nothing."""
    count = a.shape[1]
    if not count:
        return [np.zeros(len(a))] * 3
    return [np.full(len(a), count), a.mean(1), a.var(1) * count]


def aggregated(t: Any, ends: list[int]) -> None:
    stats = nl.ndarray((P, 6 * (len(ends) - 1)), nl.float32)
    for i, (begin, end) in enumerate(itertools.pairwise(ends)):
        nisa.bn_stats(stats[:, 6 * i : 6 * i + 6], t.a[:, begin:end])
    nisa.bn_aggr(t.dst, stats)
