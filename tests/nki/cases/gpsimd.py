"""GpSimd's cores of 16 partitions, and the bounds of sequences."""

from typing import Any

import numpy as np

from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from tests.nki.cases.base import BF16, P, X, case, normal, whole
from tests.nki.harness import Out


def gathered(a: Any, i: Any, width: int, valid: int) -> Any:
    out = np.empty((len(a), valid * width))
    for p in range(len(a)):
        first = p - p % 16
        order = [i[first + row, column] for column in range(i.shape[1]) for row in range(16)]
        for place, index in enumerate(order[:valid]):
            out[p, place * width : (place + 1) * width] = a[p, int(index) : int(index) + width]
    return out


def compacted(a: Any, offset: int, padding: int) -> Any:
    out = np.full((len(a), a.shape[1] + 1), -7)
    for p in range(0, len(a), 16):
        found = [column + offset for column in range(a.shape[1]) if a[p, column]]
        out[p] = found + [padding] * (a.shape[1] - len(found)) + [len(found)]
    return out


def snake(a: Any, group: int, n: int) -> Any:
    return np.array([a[16 * group + e % 16, e // 16] for e in range(n)])


def best(a: Any, n: int, k: int) -> Any:
    """Values and places, -7 where the instruction writes nothing."""
    values, places = np.full((len(a), k), -7.0), np.full((len(a), k), 9)
    for group in range(len(a) // 16):
        row = snake(a, group, n)
        chosen = sorted(range(n), key=lambda e: (-row[e], e))[:k][::-1]
        for j, element in enumerate(chosen):
            values[16 * group + j % 16, j // 16] = row[element]
            places[16 * group + j % 16, j // 16] = element
    return values, places


IDS = np.array([[0, 0, 3, 3, 3, 5, 0, 7, 7, 2, 2, 2, 2, 0]])
BEGIN = [14, 14, 2, 2, 2, 5, 14, 7, 7, 9, 9, 9, 9, 14]
END = [-1, -1, 5, 5, 5, 6, -1, 9, 9, 13, 13, 13, 13, -1]
SPARSE = np.where(normal(48, 20) > 0.3, normal(48, 20), 0).astype(np.float32)

CASES = [
    *(
        case(
            f"local_gather-width={width}-valid={valid}",
            {"a": X, "i": whole(P, 3, low=0, high=X.shape[1] - width + 1, dtype=np.uint16)},
            Out((P, (valid or 48) * width)),
            lambda t, width=width, valid=valid: nisa.local_gather(
                t.dst, t.a, t.i, num_elem_per_idx=width, num_valid_indices=valid
            ),
            lambda a, i, width=width, valid=valid: gathered(a, i, width, valid or 48),
        )
        for width, valid in [(1, None), (4, None), (1, 21), (8, 3)]
    ),
    case(
        "local_gather-keeps-integers-exact",
        {
            "a": whole(32, 9, low=2**30, high=2**31 - 1),
            "i": whole(32, 2, high=9, low=0, dtype="u2"),
        },
        Out((32, 32), nl.int32),
        lambda t: nisa.local_gather(t.dst, t.a, t.i),
        lambda a, i: gathered(a, i, 1, 32),
    ),
    *(
        case(
            f"nonzero_with_count-{dtype.__name__}-offset={offset}-padding={padding}",
            {"a": SPARSE.astype(dtype)},
            Out((48, 21), nl.int32, initial=-7),
            lambda t, offset=offset, padding=padding: nisa.nonzero_with_count(
                t.dst, t.a, index_offset=offset, padding_val=padding
            ),
            lambda a, offset=offset, padding=padding: compacted(a, offset, padding),
        )
        for dtype, offset, padding in [(np.float32, 0, -1), (np.int32, 100, 5)]
    ),
    *(
        case(
            f"topk-n={n}-k={k}",
            {"a": whole(32, 8, low=-30, high=30).astype(BF16)},
            {
                "v": Out((32, k), nl.bfloat16, initial=-7.0),
                "i": Out((32, k), nl.uint32, initial=9),
            },
            lambda t, n=n: nisa.topk(t.v, t.i, t.a, n),
            lambda a, n=n, k=k: best(a, n, k),
        )
        for n, k in [(128, 8), (128, 40), (37, 37), (8, 1)]
    ),
    *(
        case(
            f"sequence_bounds-{dtype}",
            {"a": IDS.astype(dtype.dtype)},
            Out((1, 2, 14), dtype),
            lambda t: nisa.sequence_bounds(t.dst, t.a),
            lambda a: np.array([[BEGIN, END]]),
        )
        for dtype in (nl.int32, nl.float32)
    ),
]
