"""DMA with its modes, sums of a DMA, and values at run time."""

from typing import Any

import numpy as np

from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from tests.nki.cases.base import BF16, case, normal, whole
from tests.nki.harness import In, Out

TABLE = In(np.arange(1, 41, dtype=np.float32).reshape(5, 8), nl.private_hbm)
INSIDE = np.array([[4], [0], [2]], np.int32)
ONE_OUTSIDE = np.array([[4], [9], [2]], np.int32)
TWICE = np.array([[4], [2], [4]], np.int32)
ROWS, LIKE_TABLE = Out((3, 8)), Out((5, 8), buffer=nl.private_hbm, initial=-7.0)
SKIP = nisa.oob_mode.skip


def at(table: Any, index: Any) -> Any:
    """The rows of a table that an index names."""
    return table.ap([[8, index.shape[0]], [1, 8]], vector_offset=index)


def scattered(table: Any, index: Any, rows: Any) -> Any:
    """The table with rows added, one after the other."""
    out = table.copy()
    for place, row in zip(index[:, 0].astype(int), rows, strict=True):
        if place < len(out):
            out[place] += row
    return out


PATHS = {"hbm": nl.private_hbm, "sbuf": nl.sbuf}

CASES = [
    *(
        case(
            f"dma_copy-{source}-to-{target}-{mode}-{engine}",
            {"a": In(normal(4, 6).astype(BF16), PATHS[source])},
            Out((4, 6), nl.bfloat16, buffer=PATHS[target]),
            lambda t, mode=mode, engine=engine: nisa.dma_copy(
                *(t.dst, t.a),
                dge_mode=getattr(nisa.dge_mode, mode),
                engine=getattr(nisa.engine, engine),
            ),
            lambda a: a,
            exact=True,
        )
        for source in PATHS
        for target in PATHS
        for mode, engine in [
            *(("unknown", "unknown"), ("swdge", "unknown"), ("none", "unknown")),
            *(("hwdge", "unknown"), ("hwdge", "sync"), ("hwdge", "scalar")),
        ]
    ),
    case(
        "dma_copy-priority",
        {"a": TABLE},
        Out((5, 8)),
        lambda t: nisa.dma_copy(t.dst, t.a, priority=3),
        lambda a: a,
        target="trn3",
    ),
    case(
        "dma_copy-gathers-and-leaves-what-is-outside",
        {"a": TABLE, "i": ONE_OUTSIDE},
        Out((3, 8), initial=-7.0),
        lambda t: nisa.dma_copy(t.dst, at(t.a, t.i), oob_mode=SKIP),
        lambda a, i: np.stack([a[4], np.full(8, -7), a[2]]),
        exact=True,
    ),
    case(
        "dma_copy-scatters-and-drops-what-is-outside",
        {"a": normal(3, 8), "i": ONE_OUTSIDE},
        LIKE_TABLE,
        lambda t: nisa.dma_copy(at(t.dst, t.i), t.a, oob_mode=SKIP),
        lambda a, i: np.stack([np.full(8, -7)] * 2 + [a[2], np.full(8, -7), a[0]]),
        exact=True,
    ),
    case(
        "dma_copy-gathers-and-scatters-what-is-inside-at-both-ends",
        {"a": TABLE, "i": ONE_OUTSIDE, "j": np.array([[1], [2], [0]], np.int32)},
        LIKE_TABLE,
        lambda t: nisa.dma_copy(at(t.dst, t.j), at(t.a, t.i), oob_mode=SKIP),
        lambda a, i, j: np.stack([a[2], a[4]] + [np.full(8, -7)] * 3),
        exact=True,
    ),
    *(
        case(
            f"dma_transpose-{mode}-{engine}-{len(shape)}d",
            {"a": In(whole(*shape, dtype=np.int16), PATHS[source])},
            Out(tuple(shape[axis] for axis in axes), nl.int16),
            lambda t, axes=axes, mode=mode, engine=engine: nisa.dma_transpose(
                *(t.dst, t.a, axes),
                dge_mode=getattr(nisa.dge_mode, mode),
                engine=getattr(nisa.engine, engine),
            ),
            lambda a, order=order: np.einsum(order, a),
        )
        for source in PATHS
        for mode, engine in [
            *(("unknown", "unknown"), ("swdge", "unknown"), ("none", "unknown")),
            *(("hwdge", "sync"), ("hwdge", "scalar")),
        ]
        for shape, axes, order in [
            ((16, 5), (1, 0), "ab->ba"),
            ((4, 5, 6), (2, 1, 0), "abc->cba"),
            ((8, 5, 4, 3), (3, 1, 2, 0), "abcd->dbca"),
        ]
    ),
    case(
        "dma_transpose-priority",
        {"a": TABLE},
        Out((8, 5)),
        lambda t: nisa.dma_transpose(t.dst, t.a, priority=3),
        lambda a: a.T,
        target="trn3",
    ),
    case(
        "dma_transpose-gathers",
        {"a": TABLE, "i": INSIDE},
        Out((8, 3)),
        lambda t: nisa.dma_transpose(t.dst, at(t.a, t.i)),
        lambda a, i: a[[4, 0, 2]].T,
    ),
    *(
        case(
            f"dma_compute-of-{count}-scales={scales}",
            {"a": normal(4, 6), "b": In(normal(4, 6, scale=1e6), nl.private_hbm)},
            Out((4, 6)),
            lambda t, n=count, s=scales: nisa.dma_compute(
                *(t.dst, [t.a, t.b] * (n // 2) + [t.a] * (n % 2), nl.add),
                scales=s and [1.0] * n,
            ),
            lambda a, b, n=count: (n - n // 2) * a + n // 2 * b,
        )
        for count in (1, 2, 3, 16)
        for scales in (None, True)
    ),
    *(
        case(
            f"dma_compute-{name}",
            {"a": TABLE, "i": index, "b": normal(3, 8)},
            Out((5, 8), buffer=nl.private_hbm),
            lambda t, more=more: [
                nisa.dma_copy(t.dst, t.a),
                nisa.dma_compute(at(t.dst, t.i), [at(t.dst, t.i), t.b], nl.add, **more),
            ],
            scattered_of,
        )
        for scattered_of in (lambda a, i, b: scattered(a, i, b),)
        for name, index, more in [
            ("adds-to-rows", INSIDE, {}),
            ("adds-to-rows-in-turn", TWICE, {"unique_indices": False}),
            ("leaves-what-is-outside", ONE_OUTSIDE, {"oob_mode": SKIP}),
            (
                "leaves-what-is-outside-in-turn",
                *(ONE_OUTSIDE, {"oob_mode": SKIP, "unique_indices": False}),
            ),
        ]
    ),
    case(
        "dma_compute-of-gathered-rows-leaves-what-either-lacks",
        {"a": TABLE, "i": ONE_OUTSIDE, "j": np.array([[7], [0], [1]], np.int32)},
        Out((3, 8), initial=-7.0),
        lambda t: nisa.dma_compute(t.dst, [at(t.a, t.i), at(t.a, t.j)], nl.add, oob_mode=SKIP),
        lambda a, i, j: np.stack([np.full(8, -7), np.full(8, -7), a[2] + a[1]]),
    ),
    case(
        "dma_compute-adds-gathered-rows-to-rows",
        {"a": TABLE, "i": ONE_OUTSIDE, "j": np.array([[1], [0], [3]], np.int32)},
        Out((5, 8), buffer=nl.private_hbm),
        lambda t: [
            nisa.dma_copy(t.dst, t.a),
            nisa.dma_compute(at(t.dst, t.j), [at(t.dst, t.j), at(t.a, t.i)], nl.add, oob_mode=SKIP),
        ],
        lambda a, i, j: a + np.stack([a[0] * 0, a[4], a[0] * 0, a[2], a[0] * 0]),
    ),
    case(
        "dma_compute-of-other-rows-of-the-same-table-is-no-addition-to-them",
        {"a": TABLE, "i": INSIDE, "j": np.array([[1], [3], [1]], np.int32)},
        Out((5, 8), buffer=nl.private_hbm),
        lambda t: [
            nisa.dma_copy(t.dst, t.a),
            nisa.dma_compute(at(t.dst, t.i), [at(t.dst, t.j)], nl.add),
        ],
        lambda a, i, j: a[[3, 1, 1, 3, 1]],
    ),
    *(
        case(
            f"{name}-{value}",
            {"a": np.array([[value]], np.int32)},
            Out((1, 1), nl.int32),
            call,
            lambda a: a,
            nki="0.7",
        )
        for value in (0, -1, 2**31 - 1)
        for name, call in {
            "register_load": lambda t: into(t, nisa.register_alloc(t.a)),
            "register_store": lambda t: into(t, loaded(t)),
            "scalar_load": lambda t: nisa.scalar_store(t.dst, nisa.scalar_load(t.a)),
            "scalar_store": lambda t: nisa.scalar_store(t.dst, nisa.scalar_load(t.a) + 0),
        }.items()
    ),
    *(
        case(
            f"register_move-{value}-{kind}",
            {},
            Out((1, 1), nl.int32),
            lambda t, value=value, kind=kind: into(t, register(value, kind)),
            lambda value=value: np.array([[value]]),
        )
        for value in (0, -1, 2**31 - 1)
        for kind in ("int", "register")
    ),
]


def into(t: Any, register: Any) -> None:
    nisa.register_store(t.dst, register)


def loaded(t: Any) -> Any:
    made = nisa.register_alloc(5)
    nisa.register_load(made, t.a)
    return made


def register(value: int, kind: str) -> Any:
    made = nisa.register_alloc(5)
    nisa.register_move(made, value if kind == "int" else nisa.register_alloc(value))
    return made
