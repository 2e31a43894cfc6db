"""The microscaling formats of gen4."""

from typing import Any

import ml_dtypes
import numpy as np

from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from tests.nki.cases.base import BF16, RNG, case, normal
from tests.nki.harness import Out

FP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
LARGEST = {"float8_e4m3fn": 8, "float8_e5m2": 15}
RANGES = np.exp2(RNG.integers(-20, 20, (64, 1)))
WIDE = (normal(64, 24) * RANGES).astype(BF16)
WIDE[:8, :4] = 0


def scale_rows(partitions: int) -> list[int]:
    return [32 * (group // 4) + group % 4 for group in range(partitions // 8)]


def quantized(a: Any, element: str) -> tuple[Any, Any]:
    """Bytes of the elements and of the scales, one group after the other."""
    out = np.zeros(a.shape, np.uint8)
    scale = np.full((len(a), a.shape[1] // 4), 9)
    for group, row in enumerate(scale_rows(len(a))):
        for column in range(a.shape[1] // 4):
            part = a[8 * group : 8 * group + 8, 4 * column : 4 * column + 4]
            top = abs(part).max()
            exponent = np.floor(np.log2(top)) - LARGEST[element] + 1 if top else -127
            scale[row, column] = exponent + 127
            kind = getattr(ml_dtypes, element)
            out[8 * group : 8 * group + 8, 4 * column : 4 * column + 4] = (
                (part / 2.0**exponent).astype(np.float32).astype(kind).view(np.uint8)
            )
    return out.view(np.uint32).astype(np.int64), scale


def spread(scale: Any, data: Any) -> Any:
    """Scales [P, N] as bytes -> factors [P, N] of the partitions."""
    factors = np.empty(data.shape[:2])
    for group, row in enumerate(scale_rows(len(data))):
        factors[8 * group : 8 * group + 8] = 2.0 ** (scale[row] - 127)
    return factors[..., None]


def eight(a: Any, element: str) -> Any:
    kind = getattr(ml_dtypes, element)
    return a.astype(np.uint32).view(kind).astype(np.float64).reshape(*a.shape, 4)


def four(a: Any) -> Any:
    codes = a.astype(int)[..., None] >> np.array([0, 4, 8, 12]) & 15
    return np.array(FP4)[codes & 7] * np.where(codes & 8, -1, 1)


def bytes4(rows: int, columns: int) -> Any:
    """Finite fp8 elements, four in one."""
    elements = RNG.integers(0, 0x70, (rows, columns * 4)) | RNG.integers(0, 2, columns * 4) << 7
    return elements.astype(np.uint8).view(np.uint32)


def scales(rows: int, columns: int) -> Any:
    return RNG.integers(120, 133, (rows, columns)).astype(np.uint8)


E4, E5, F4 = nl.float8_e4m3fn_x4, nl.float8_e5m2_x4, nl.float4_e2m1fn_x4

CASES = [
    *(
        case(
            f"quantize_mx-{element}-{source.__name__}",
            {"a": values},
            {
                "dst": Out((64, 6), getattr(nl, f"{element}_x4")),
                "scale": Out((64, 6), nl.uint8, initial=9),
            },
            lambda t: nisa.quantize_mx(t.dst, t.a, t.scale),
            lambda a, element=element: quantized(a, element),
            target="trn3",
        )
        for element in LARGEST
        for source, values in [(BF16, WIDE), (np.float16, normal(64, 24).astype(np.float16))]
    ),
    *(
        case(
            f"nc_matmul_mx-{left}-{right}-{out}",
            {
                "a": bytes4(64, 24),
                "b": RNG.integers(0, 2**16, (64, 30)).astype(np.uint16)
                if right is F4
                else bytes4(64, 30),
                "s": scales(64, 24),
                "u": scales(36, 30),
            },
            Out((24, 30), out, buffer=nl.psum),
            lambda t, left=left, right=right: [
                nisa.nc_matmul_mx(t.dst, t.a.view(left), t.b.view(right), t.s, t.u)
                for _ in range(2)
            ],
            lambda a, b, s, u, left=left, right=right: (
                2
                * np.einsum(
                    "kmi,kni->mn",
                    eight(a, left.name[:-3]) * spread(s, a),
                    (four(b) if right is F4 else eight(b, right.name[:-3])) * spread(u, b),
                )
            ),
            target="trn3",
        )
        for left, right, out in [
            (E4, E4, nl.float32),
            (E5, E4, nl.float32),
            (E4, F4, nl.float32),
            (E4, E4, nl.bfloat16),
        ]
    ),
    *(
        case(
            f"nc_matmul_mx-accumulate={accumulate}",
            {
                "a": bytes4(64, 24),
                "b": bytes4(64, 30),
                "s": scales(64, 24),
                "u": scales(64, 30),
            },
            Out((24, 30), buffer=nl.psum),
            lambda t, accumulate=accumulate: [
                nisa.nc_matmul_mx(
                    *(t.dst, t.a.view(E4), t.b.view(E5), t.s, t.u),
                    accumulate=None if first else accumulate,
                )
                for first in (True, False)
            ],
            lambda a, b, s, u, times=times: (
                times
                * np.einsum(
                    "kmi,kni->mn",
                    eight(a, "float8_e4m3fn") * spread(s, a),
                    eight(b, "float8_e5m2") * spread(u, b),
                )
            ),
            target="trn3",
        )
        for accumulate, times in [(False, 1), (True, 2)]
    ),
    case(
        "nc_matmul_mx-of-what-quantize_mx-made",
        {"a": normal(128, 4 * 16).astype(BF16), "b": normal(128, 4 * 20).astype(BF16)},
        Out((16, 20), buffer=nl.psum),
        lambda t: product_of_quantized(t),
        lambda a, b: np.einsum("kmi,kni->mn", near(a), near(b)),
        target="trn3",
    ),
]


def product_of_quantized(t: Any) -> None:
    tiles = []
    for source in (t.a, t.b):
        data = nl.ndarray((128, source.shape[1] // 4), E4)
        scale = nl.ndarray(data.shape, nl.float8_e8m0fnu)
        nisa.quantize_mx(data, source, scale)
        tiles.append((data, scale))
    (left, s), (right, u) = tiles
    nisa.nc_matmul_mx(t.dst, left, right, s, u, tile_position=(0, 0), tile_size=(128, 128))


def near(a: Any) -> Any:
    """What quantisation to e4m3fn leaves of the values."""
    data, scale = quantized(a, "float8_e4m3fn")
    return eight(data, "float8_e4m3fn") * spread(scale, data)
