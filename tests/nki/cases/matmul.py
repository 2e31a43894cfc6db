"""The tensor engine, and the transposes of all engines."""

import ml_dtypes
import numpy as np

from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from tests.nki.cases.base import BF16, P, case, normal, whole
from tests.nki.harness import Out

CASES = [
    *(
        case(
            f"nc_matmul-{left.__name__}-{right.__name__}",
            {"a": normal(P, 24).astype(left), "b": normal(P, 100).astype(right)},
            Out((24, 100), buffer=nl.psum),
            lambda t: nisa.nc_matmul(t.dst, t.a, t.b),
            lambda a, b: a.T @ b,
        )
        for left, right in [
            (np.float32, np.float32),
            (BF16, BF16),
            (BF16, np.float16),
            (ml_dtypes.float8_e4m3, BF16),
        ]
    ),
    case(
        "nc_matmul-accumulate-modes",
        {"a": normal(P, 24), "b": normal(P, 50)},
        {"auto": Out((24, 50), buffer=nl.psum), "forced": Out((24, 50), buffer=nl.psum)},
        lambda t: [
            *(nisa.nc_matmul(t.auto, t.a, t.b) for _ in range(3)),
            *(nisa.nc_matmul(t.forced, t.a, t.b) for _ in range(2)),
            nisa.nc_matmul(t.forced, t.a, t.b, accumulate=False),
            nisa.nc_matmul(t.forced, t.a, t.b, accumulate=True),
        ],
        lambda a, b: (3 * a.T @ b, 2 * a.T @ b),
    ),
    case(
        "nc_matmul-another-engine's-write-ends-the-accumulation",
        {"a": normal(P, 24), "b": normal(P, 50)},
        Out((24, 50), buffer=nl.psum),
        lambda t: [
            nisa.nc_matmul(t.dst, t.a, t.b),
            nisa.memset(t.dst[:, 0:20], 7.0),
            nisa.nc_matmul(t.dst, t.a, t.b),
        ],
        lambda a, b: a.T @ b * np.where(np.arange(50) < 20, 1, 2),
    ),
    case(
        "nc_matmul-auto-accumulates-per-region",
        {"a": normal(P, 24), "b": normal(P, 50)},
        Out((24, 50), buffer=nl.psum),
        lambda t: [
            nisa.nc_matmul(t.dst[:, 0:20], t.a, t.b[:, 0:20]),
            nisa.nc_matmul(t.dst, t.a, t.b),
        ],
        lambda a, b: a.T @ b * np.where(np.arange(50) < 20, 2, 1),
    ),
    *(
        case(
            f"nc_transpose-{engine}",
            {"a": normal(rows, columns).astype(BF16)},
            Out((columns, rows), nl.bfloat16, buffer=buffer),
            lambda t: nisa.nc_transpose(t.dst, t.a),
            lambda a: a.T,
        )
        for engine, rows, columns, buffer in [
            ("tensor", 128, 70, nl.psum),
            ("vector", 32, 20, nl.sbuf),
        ]
    ),
    *(
        case(
            f"dma_transpose-{len(shape)}d",
            {"a": whole(*shape, dtype=np.int16)},
            Out(expected, nl.int16),
            lambda t: nisa.dma_transpose(t.dst, t.a),
            lambda a, order=order: np.einsum(order, a),
        )
        for shape, expected, order in [
            ((6, 5), (5, 6), "ab->ba"),
            ((6, 5, 4), (4, 5, 6), "abc->cba"),
            ((6, 5, 4, 3), (3, 5, 4, 6), "abcd->dbca"),
        ]
    ),
    *(
        case(
            f"nc_matmul-double_row-{left.__name__}-{right.__name__}",
            {"a": normal(P, 2, 24).astype(left), "b": normal(P, 2, 50).astype(right)},
            Out((24, 50), buffer=nl.psum),
            lambda t: nisa.nc_matmul(t.dst, t.a, t.b, perf_mode=nisa.matmul_perf_mode.double_row),
            lambda a, b: np.einsum("khm,khn->mn", a, b),
        )
        for left, right in [
            (ml_dtypes.float8_e4m3, ml_dtypes.float8_e4m3),
            (ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3),
        ]
    ),
    case(
        "nc_matmul-tiles-of-the-array-compute-the-same",
        {"a": normal(P, 24), "b": normal(P, 50)},
        Out((24, 50), buffer=nl.psum),
        lambda t: [
            nisa.nc_matmul(
                *(t.dst, t.a[row : row + 32], t.b[row : row + 32]),
                tile_position=(row, 0),
                tile_size=(32, 128),
            )
            for row in (0, 32)
        ],
        lambda a, b: a.T @ b,
    ),
    *(
        case(
            f"nc_matmul-is_transpose-of-{np.dtype(kind).name}",
            {"a": normal(30, 20).astype(kind), "i": np.eye(30).astype(kind)},
            Out((20, 30), dtype, buffer=nl.psum),
            lambda t: nisa.nc_matmul(t.dst, t.a, t.i, is_transpose=True),
            lambda a, i: a.T,
            exact=True,
        )
        for kind, dtype in [(BF16, nl.bfloat16), (np.float16, nl.float16)]
    ),
    case(
        "nc_matmul-hints-of-zeros-and-ones-change-nothing",
        {"a": np.eye(P, 24, dtype=np.float32), "b": whole(P, 50, low=0, high=2).astype("f4")},
        Out((24, 50), buffer=nl.psum),
        lambda t: nisa.nc_matmul(
            t.dst, t.a, t.b, is_stationary_onezero=True, is_moving_onezero=True
        ),
        lambda a, b: a.T @ b,
    ),
    case(
        "nc_matmul-psum-bf16-accumulates-on-gen4",
        {"a": normal(P, 24).astype(BF16), "b": normal(P, 50).astype(BF16)},
        Out((24, 50), nl.bfloat16, buffer=nl.psum),
        lambda t: nisa.nc_matmul(t.dst, t.a, t.b),
        lambda a, b: a.T @ b,
        target="trn3",
    ),
]
