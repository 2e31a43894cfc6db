"""Selects by predicate, range and affine pattern; the eight largest."""

import numpy as np

from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from tests.nki.cases.base import COLUMN, LIKE, OPS64, U8, N, P, X, case, op, whole
from tests.nki.harness import Out

CASES = [
    *(
        case(
            f"affine_select-{name}",
            {"a": X},
            LIKE,
            lambda t, name=name: nisa.affine_select(
                *(t.dst, [[-1, N]], 1, t.a, -9.0), cmp_op=op(name), offset=-3
            ),
            lambda a, name=name: np.where(
                OPS64[name](np.arange(P)[:, None] - np.arange(N) - 3, 0), a, -9
            ),
        )
        for name in ("greater_equal", "greater", "less", "less_equal", "equal", "not_equal")
    ),
    case(
        "range_select-start-and-maximum",
        {
            "a": X,
            "lo": whole(P, 1, low=0, high=10).astype(np.float32),
            "hi": whole(P, 1, low=12, high=40).astype(np.float32),
        },
        {"dst": LIKE, "top": Out((P, 1))},
        lambda t: nisa.range_select(
            *(t.dst, t.a, nl.greater_equal, nl.less, t.lo, t.hi), reduce_res=t.top, range_start=2
        ),
        lambda a, lo, hi: (lambda kept: (kept, kept.max(1, keepdims=True)))(
            np.where(
                (np.arange(N) + 2 >= lo) & (np.arange(N) + 2 < hi), a, np.finfo(np.float32).min
            )
        ),
    ),
    *(
        case(
            f"select_reduce-reverse={reverse}-{kind}",
            {"p": U8, "a": X, "c": COLUMN},
            {"dst": LIKE, "top": Out((P, 1))},
            lambda t, reverse=reverse, kind=kind: nisa.select_reduce(
                *(t.dst, t.p, t.a, t.c if kind == "column" else -5.0, t.top),
                reduce_cmd=nisa.reduce_cmd.reset_reduce,
                reverse_pred=reverse,
            ),
            lambda p, a, c, reverse=reverse, kind=kind: (
                lambda kept: (kept, kept.max(1, keepdims=True))
            )(np.where((p == 0) == reverse, a, c if kind == "column" else -5)),
        )
        for reverse in (False, True)
        for kind in ("column", "number")
    ),
    case(
        "max8",
        {"a": X},
        Out((P, 8)),
        lambda t: nisa.max8(t.dst, t.a),
        lambda a: -np.sort(-a, axis=1)[:, :8],
    ),
    *(
        case(
            f"nc_find_index8-{dtype}",
            {
                "a": np.array([[4, 9, 4, 1, 9, 9, 0, 2, 4]], np.float32),
                "v": np.array([[9, 9, 9, 9, 4, 2, 7, 0]], np.float32),
            },
            Out((1, 8), dtype),
            lambda t: nisa.nc_find_index8(t.dst, t.a, t.v),
            lambda a, v, miss=miss: np.array([[1, 4, 5, miss, 0, 7, miss, 6]]),
        )
        for dtype, miss in [(nl.uint16, 2**16 - 1), (nl.uint32, 2**32 - 1)]
    ),
    case(
        "nc_match_replace8-equal-values-from-the-last-slot",
        {
            "a": np.array([[4, 9, 4, 1, 9, 9, 0, 2, 4]], np.float32),
            "v": np.array([[9, 9, 7, 1, 4, 2, 7, 0]], np.float32),
        },
        {"dst": Out((1, 9)), "at": Out((1, 8), nl.uint32)},
        lambda t: nisa.nc_match_replace8(t.dst, t.a, t.v, -1.0, dst_idx=t.at),
        lambda a, v: (
            np.array([[-1, -1, 4, -1, -1, 9, -1, -1, 4]]),
            np.array([[4, 1, 2**32 - 1, 3, 0, 7, 2**32 - 1, 6]]),
        ),
    ),
]
