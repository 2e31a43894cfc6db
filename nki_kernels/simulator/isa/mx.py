"""The microscaling formats of gen4: quantize_mx and nc_matmul_mx.

A group is 8 partitions by the 4 elements of a packed one; its scale 2^(byte - 127) lies in the
tile of scales on the first four partitions of each quadrant of 32, in the column of the packed
elements.
"""

import ml_dtypes
import numpy as np

from nki_kernels.simulator import checks
from nki_kernels.simulator.context import refuse
from nki_kernels.simulator.dtypes import (
    PACKED,
    Array,
    bfloat16,
    float4_e2m1fn_x4,
    float8_e4m3fn_x4,
    float8_e5m2_x4,
    float8_e8m0fnu,
    float16,
    float32,
    uint8,
)
from nki_kernels.simulator.hardware import Engine
from nki_kernels.simulator.instruction import PSUM, SBUF, Call, Check, Operand, instruction
from nki_kernels.simulator.isa.matmul import accumulate_into, array_tile
from nki_kernels.simulator.isa.operands import native, rows
from nki_kernels.simulator.tensor import NkiTensor

ROWS, PACK, QUADRANT = 8, 4, 32  # partitions and elements of a group, partitions of a quadrant
BIAS, NAN = 127, 255  # of a scale's byte
ELEMENTS = {  # type of one element, exponent of its largest power of two
    float8_e4m3fn_x4: (ml_dtypes.float8_e4m3fn, 8),
    float8_e5m2_x4: (ml_dtypes.float8_e5m2, 15),
}
SCALES = frozenset({uint8, float8_e8m0fnu})
DATA = Operand("read", SBUF, frozenset(PACKED))


def _scale_tile(data: str, scale: str) -> Check:
    def check(call: Call) -> None:
        (_, one), (_, other) = call.tensors(data, scale)
        least = one.shape[0] - QUADRANT + PACK
        if one.shape[0] % QUADRANT:
            refuse("size-limit", data, f"a multiple of {QUADRANT} partitions", one)
        if not least <= other.shape[0] <= one.shape[0] or other.free != one.free:
            expected = f"{least}..{one.shape[0]} partitions of {one.free} elements"
            refuse("shape", scale, expected, other)

    return check


def _quarter(call: Call) -> None:
    (_, dst), (_, src) = call.tensors("dst", "src")
    if src.free % PACK or dst.free != src.free // PACK:
        refuse("element-count", "dst", f"a quarter of src's {src.free} elements", dst)


@instruction(
    Engine.vector,
    dst=Operand("write", SBUF, frozenset(ELEMENTS)),
    src=Operand("read", SBUF, frozenset({float16, bfloat16})),
    dst_scale=Operand("write", SBUF, SCALES),
    checks=[checks.same_partitions("src", "dst"), _quarter, _scale_tile("dst", "dst_scale")],
    generations=(4,),
)
def quantize_mx(dst: NkiTensor, src: NkiTensor, dst_scale: NkiTensor) -> None:
    """Groups of 8 x 4 elements as 8-bit floats with one scale each: twice the power of two that
    the OCP standard's sample takes, so that rounding never saturates.

    A group of zeros gets the smallest scale, one that is not finite a NaN (decided here).
    """
    element, largest = ELEMENTS[dst.dtype]
    groups = rows(src, "src").reshape(src.shape[0] // ROWS, ROWS, -1, PACK)
    top = np.abs(groups).max(axis=(1, 3))
    exponent = np.clip(np.frexp(top)[1] - 1 - largest + 1, -BIAS, BIAS)
    exponent = np.where(top == 0, -BIAS, exponent)
    finite = np.isfinite(top)
    scaled = np.ldexp(groups, -np.where(finite, exponent, 0)[:, None, :, None])
    scaled = np.where(finite[:, None, :, None], scaled, np.nan)
    packed = scaled.reshape(src.shape[0], -1).astype(element).view(dst.dtype.dtype)
    dst.write(packed)
    scale = np.where(finite, exponent + BIAS, NAN).astype(np.uint8)
    for group, line in enumerate(scale):
        row = _scale_row(group)
        dst_scale[row : row + 1].write(line.view(dst_scale.dtype.dtype))


def _scale_row(group: int) -> int:
    return group // PACK * QUADRANT + group % PACK


def dequantized(data: NkiTensor, scale: NkiTensor, argument: str) -> Array:
    """The elements times their scales, float32 [P * 4, N]."""
    packed = np.ascontiguousarray(native(data, argument))
    if data.dtype == float4_e2m1fn_x4:
        nibbles = packed[..., None] >> np.arange(0, 16, 4, dtype=np.uint16) & 15
        values = nibbles.astype(np.uint8).view(ml_dtypes.float4_e2m1fn)
    else:
        values = packed.view(np.uint8).view(ELEMENTS[data.dtype][0])
    elements = values.astype(np.float32).reshape(data.shape[0], -1, PACK)
    lines = [
        scale[row : row + 1].read(f"{argument}_scale").reshape(1, -1).view(np.uint8)
        for row in map(_scale_row, range(data.shape[0] // ROWS))
    ]
    stored = np.concatenate(lines).astype(np.int64)
    factor = np.where(stored == NAN, np.nan, np.ldexp(np.float32(1), stored - BIAS))
    scaled: Array = elements * np.repeat(factor, ROWS, axis=0)[..., None].astype(np.float32)
    return scaled.swapaxes(1, 2).reshape(data.shape[0] * PACK, -1)


def _shapes(call: Call) -> None:
    (_, dst), (_, left), (_, right) = call.tensors("dst", "stationary", "moving")
    most = 1024 if dst.dtype == bfloat16 else 512
    if left.shape[0] != right.shape[0]:
        refuse("shape", "moving", f"{left.shape[0]} partitions, as stationary", right)
    if left.free > 128 or left.free % 2:
        refuse("size-limit", "stationary", "an even number <= 128 of elements", left)
    if right.free > most:
        refuse("size-limit", "moving", f"<= {most} elements per partition", right)
    if dst.shape[0] != left.free or dst.free != right.free:
        refuse("shape", "dst", f"{left.free} partitions of {right.free} elements", dst)
    size = call.arguments["tile_size"]
    if size and size[1] != 128:
        refuse("value", "tile_size", "128 columns: rows only", size)


@instruction(
    Engine.tensor,
    dst=Operand("write", PSUM, frozenset({float32, bfloat16})),
    stationary=DATA,
    moving=DATA,
    stationary_scale=Operand("read", SBUF, SCALES),
    moving_scale=Operand("read", SBUF, SCALES),
    checks=[
        _shapes,
        _scale_tile("stationary", "stationary_scale"),
        _scale_tile("moving", "moving_scale"),
        array_tile,
    ],
    generations=(4,),
)
def nc_matmul_mx(
    dst: NkiTensor,
    stationary: NkiTensor,
    moving: NkiTensor,
    stationary_scale: NkiTensor,
    moving_scale: NkiTensor,
    tile_position: tuple[int, ...] | None = None,
    tile_size: tuple[int, ...] | None = None,
    accumulate: bool | None = None,
) -> None:
    """`dst[M, N] (+)= stationary.T @ moving` of scaled elements; contracted over the partitions
    and the four of a packed element. Accumulates as `nc_matmul`."""
    left = dequantized(stationary, stationary_scale, "stationary")
    accumulate_into(dst, left.T @ dequantized(moving, moving_scale, "moving"), accumulate)
