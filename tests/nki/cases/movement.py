"""Copies with their rounding, constants, shuffles and address patterns."""

import numpy as np

from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from tests.nki.cases.base import U8, N, P, X, case, stored, whole
from tests.nki.harness import In, Out

CASES = [
    *(
        case(
            f"tensor_copy-float-to-{dtype}-rounds-half-to-even-and-saturates",
            {"a": np.array([[0.5, 1.5, 2.5, -0.5, -1.5, 2.49, 2.51, 1e12, -1e12, 300.0]], "f4")},
            Out((1, 10), dtype),
            lambda t: nisa.tensor_copy(t.dst, t.a),
            lambda a, low=low, high=high: np.clip(
                [[0, 2, 2, 0, -2, 2, 3, 1e12, -1e12, 300]], low, high
            ),
        )
        for dtype, low, high in [
            (nl.int8, -128, 127),
            (nl.uint8, 0, 255),
            (nl.int16, -(2**15), 2**15 - 1),
            (nl.uint16, 0, 2**16 - 1),
            (nl.int32, -(2**31), 2**31 - 1),
            (nl.uint32, 0, 2**32 - 1),
        ]
    ),
    case(
        "tensor_copy-int32-is-bit-exact",
        {"a": np.array([[2**31 - 1, -(2**31), 2**24 + 1]], np.int32)},
        Out((1, 3), nl.int32),
        lambda t: nisa.tensor_copy(t.dst, t.a),
        lambda a: a,
    ),
    case(
        "tensor_copy-tfloat32-keeps-ten-bits",
        {"a": np.array([[1 + 2**-10, 1 + 2**-11, 1 + 3 * 2**-11, -1 - 2**-12]], np.float32)},
        Out((1, 4), nl.tfloat32),
        lambda t: nisa.tensor_copy(t.dst, t.a),
        lambda a: np.array([[1 + 2**-10, 1, 1 + 2**-9, -1]]),
    ),
    *(
        case(
            f"tensor_copy_predicated-reverse={reverse}",
            {"a": X, "p": U8},
            Out((P, N), initial=-7.0),
            lambda t, reverse=reverse: nisa.tensor_copy_predicated(
                t.dst, t.a, t.p, reverse_pred=reverse
            ),
            lambda a, p, reverse=reverse: np.where((p == 0) == reverse, a, -7),
        )
        for reverse in (False, True)
    ),
    *(
        case(
            f"tensor_copy_predicated-of-a-number-{dtype}",
            {"p": U8},
            Out((P, N), dtype, initial=old),
            lambda t, value=value: nisa.tensor_copy_predicated(t.dst, value, t.p),
            lambda p, value=value, old=old: np.where(p != 0, value, old),
        )
        for dtype, value, old in [(nl.float32, 2.5, -7.0), (nl.int32, 2**30 + 1, -7)]
    ),
    *(
        case(
            f"tensor_copy-{'psum' if psum else 'sbuf'}-on-{engine}",
            {"a": In(X, nl.psum if psum else nl.sbuf)},
            Out((P, N), nl.int8),
            lambda t, engine=engine: nisa.tensor_copy(
                t.dst, t.a, engine=getattr(nisa.engine, engine)
            ),
            lambda a: stored(a, nl.int8),
        )
        for psum in (False, True)
        for engine in ("vector", "scalar", "gpsimd")
        if not (psum and engine == "gpsimd")
    ),
    *(
        case(
            f"memset-on-{engine}",
            {},
            {"dst": Out((P, 3)), "whole": Out((P, 3), nl.int32)},
            lambda t, engine=engine: [
                nisa.memset(t.dst, -0.25, engine=getattr(nisa.engine, engine)),
                nisa.memset(t.whole, 2**24 + 1, engine=getattr(nisa.engine, engine)),
            ],
            lambda: (np.full((P, 3), -0.25), np.full((P, 3), 2**24 + 1)),
        )
        for engine in ("vector", "gpsimd")
    ),
    case(
        "memset",
        {},
        Out((P, 3), nl.bfloat16),
        lambda t: nisa.memset(t.dst, 1.5),
        lambda: np.full((P, 3), 1.5),
    ),
    case(
        "nc_stream_shuffle-255-leaves-the-row",
        {"a": X},
        Out((P, N), initial=-7.0),
        lambda t: nisa.nc_stream_shuffle(t.dst, t.a, [31, 255, *([0] * 30)]),
        lambda a: np.stack(
            [
                np.full(N, -7.0) if p % 32 == 1 else a[p - p % 32 + (31 if p % 32 == 0 else 0)]
                for p in range(P)
            ]
        ),
    ),
    case(
        "nc_stream_shuffle-of-one-row-spreads-it",
        {"a": X},
        Out((20, N)),
        lambda t: nisa.nc_stream_shuffle(t.dst, t.a[32:33], [0] * 32),
        lambda a: np.repeat(a[32:33], 20, axis=0),
    ),
    case(
        "iota",
        {},
        Out((P, 3, 4), nl.int32),
        lambda t: nisa.iota(t.dst, [[10, 3], [1, 4]], offset=5, channel_multiplier=100),
        lambda: 5 + 100 * np.arange(P)[:, None, None] + 10 * np.arange(3)[:, None] + np.arange(4),
    ),
    case(
        "nc_n_gather",
        {"a": X, "i": whole(P, 6, low=0, high=N, dtype=np.uint32)},
        Out((P, 6)),
        lambda t: nisa.nc_n_gather(t.dst, t.a, t.i),
        lambda a, i: a[np.arange(P)[:, None], i.astype(int)],
    ),
]
