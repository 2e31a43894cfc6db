"""The tensor engine: nc_matmul and nc_transpose."""

import numpy as np

from nki_kernels.simulator import checks
from nki_kernels.simulator.context import current, refuse
from nki_kernels.simulator.dtypes import (
    Array,
    bfloat16,
    float8_e4m3,
    float8_e4m3fn,
    float8_e5m2,
    float16,
    float32,
    tfloat32,
)
from nki_kernels.simulator.errors import NkiNotSimulated
from nki_kernels.simulator.hardware import PARTITIONS, PSUM_BANK_BYTES, Engine
from nki_kernels.simulator.instruction import PSUM, SBUF, Call, Operand, instruction
from nki_kernels.simulator.isa.enums import matmul_perf_mode
from nki_kernels.simulator.isa.operands import native, rows
from nki_kernels.simulator.memory import Buffer
from nki_kernels.simulator.tensor import NkiTensor

PRODUCTS = frozenset(
    {float32, tfloat32, bfloat16, float16, float8_e4m3, float8_e4m3fn, float8_e5m2}
)
WIDE = (float32, tfloat32)  # each goes only with itself
EIGHT_BITS = frozenset({float8_e4m3, float8_e4m3fn, float8_e5m2})
DOUBLE_ROW = matmul_perf_mode.double_row


def _matmul_shapes(call: Call) -> None:
    (_, dst), (_, left), (_, right) = call.tensors("dst", "stationary", "moving")
    most, doubled = current().generation.moving_max, call.arguments["perf_mode"] is DOUBLE_ROW
    for name, tensor in (("stationary", left), ("moving", right)):
        if doubled and (tensor.ndim < 3 or tensor.shape[1] != 2):
            refuse("shape", name, "a first free dimension of 2 with double_row", tensor)
    columns, wide = (tensor.free // (2 if doubled else 1) for tensor in (left, right))
    if left.shape[0] != right.shape[0]:
        refuse("shape", "moving", f"{left.shape[0]} partitions, as stationary", right)
    if columns > PARTITIONS:
        refuse("size-limit", "stationary", f"<= {PARTITIONS} elements per partition", left)
    if wide > most * (2 if dst.dtype == bfloat16 and most > 512 else 1):
        refuse("size-limit", "moving", f"<= {most} elements per partition", right)
    if dst.shape[0] != columns or dst.free != wide:
        refuse("shape", "dst", f"{columns} partitions of {wide} elements", dst)


def array_tile(call: Call) -> None:
    """tile_position and tile_size: a part of the 128 x 128 array, in which stationary fits."""
    position: tuple[int, ...] = tuple(call.arguments["tile_position"] or ())
    size: tuple[int, ...] = tuple(call.arguments["tile_size"] or ())
    if not position and not size:
        return
    if len(position) != 2 or len(size) != 2:
        refuse("signature", "tile_size", "(row, column) for tile_position and tile_size", size)
    sizes = (64, 128) if current().generation.number < 3 else (32, 64, 128)
    if not set(size) <= set(sizes):
        refuse("value", "tile_size", f"rows and columns of {sizes}", size)
    for start, extent in zip(position, size, strict=True):
        if start % extent or not 0 <= start <= PARTITIONS - extent:
            refuse("value", "tile_position", f"multiples of {size} in the array", position)
    stationary = call.arguments["stationary"]
    columns = stationary.free // (2 if call.arguments.get("perf_mode") is DOUBLE_ROW else 1)
    if stationary.shape[0] > size[0] or columns > size[1]:
        refuse("size-limit", "stationary", f"at most the tile of {size}", stationary)
    if size[1] != PARTITIONS:
        refuse("column-tiling", "tile_size", f"{PARTITIONS} columns", size)
        if call.arguments.get("perf_mode") is DOUBLE_ROW:
            refuse("value", "perf_mode", "none with column tiling", "double_row")


def _matmul_dtypes(call: Call) -> None:
    (_, dst), (_, left), (_, right) = call.tensors("dst", "stationary", "moving")
    generation = current().generation
    pair = {left.dtype, right.dtype}
    if len(pair) > 1 and pair & {*WIDE}:
        refuse("dtype", "moving", f"{left.dtype}: float32 only with float32", right.dtype)
    if float8_e4m3fn in pair:
        if generation.number < 4:
            refuse("generation", "moving", "gen4 for float8_e4m3fn", generation.name)
        if float8_e4m3 in pair:
            refuse("dtype", "moving", "float8_e4m3fn is never mixed with float8_e4m3", pair)
    if call.arguments["is_transpose"]:
        if dst.dtype != right.dtype:
            refuse("same-dtype", "dst", f"{right.dtype}, as moving, with is_transpose", dst)
    elif dst.dtype != float32 and (generation.number < 4 or dst.dtype != bfloat16):
        allowed = "float32" if generation.number < 4 else "float32 or bfloat16"
        refuse("dtype", "dst", f"{allowed} on gen{generation.number}", dst)


def one_bank(call: Call) -> None:
    """What the tensor engine writes lies in one bank, before gen4."""
    dst = call.arguments["dst"]
    if dst.buffer is not Buffer.psum or current().generation.number >= 4:
        return
    _, _, first, end = dst.access("dst").region
    if first // PSUM_BANK_BYTES != (end - 1) // PSUM_BANK_BYTES:
        refuse("psum-bank", "dst", "one bank of 2 KiB per partition", f"bytes {first}..{end}")


def _perf_mode(call: Call) -> None:
    mode = call.arguments["perf_mode"]
    if mode is matmul_perf_mode.none:
        return
    if current().generation.number < 3:
        refuse("generation", "perf_mode", "gen3 or newer", mode.name)
    if mode is not DOUBLE_ROW:
        refuse("value", "perf_mode", "none or double_row: the others are not described", mode.name)
    for name, tensor in call.tensors("stationary", "moving"):
        if tensor.dtype not in EIGHT_BITS:
            refuse("dtype", name, "an 8-bit float with double_row", tensor)


@instruction(
    Engine.tensor,
    dst=Operand("write", PSUM),
    stationary=Operand("read", SBUF, PRODUCTS),
    moving=Operand("read", SBUF, PRODUCTS),
    checks=[_perf_mode, _matmul_shapes, _matmul_dtypes, one_bank, array_tile],
)
def nc_matmul(
    dst: NkiTensor,
    stationary: NkiTensor,
    moving: NkiTensor,
    is_stationary_onezero: bool = False,
    is_moving_onezero: bool = False,
    is_transpose: bool = False,
    accumulate: bool | None = None,
    tile_position: tuple[int, ...] = (),
    tile_size: tuple[int, ...] = (),
    perf_mode: matmul_perf_mode = matmul_perf_mode.none,
) -> None:
    """`dst[M, N] (+)= stationary[K, M].T @ moving[K, N]`, in float32.

    `accumulate`: False overwrites, True adds, None adds to elements that a matmul wrote and
    overwrites the others. Any other write to an element ends its accumulation (decided here).
    With `double_row` the operands are [K, 2, M] and [K, 2, N] and both halves are summed. A tile of
    the array changes where a product runs, not its value.
    """
    halves = 2 if perf_mode is DOUBLE_ROW else 1
    left, right = (
        rows(tensor, name).reshape(tensor.shape[0] * halves, -1)
        for name, tensor in (("stationary", stationary), ("moving", moving))
    )
    accumulate_into(dst, left.T @ right, accumulate)


def accumulate_into(dst: NkiTensor, product: Array, accumulate: bool | None) -> None:
    """Write or add a product to PSUM; see `nc_matmul`."""
    if dst.picks:
        raise NkiNotSimulated("a product into the columns of an .indirect view: not simulated")
    dst = dst.resolve()
    product = product.reshape(dst.shape)
    place = (dst.itemsize, dst.offset, dst.shape, dst.strides)
    mine = dst.storage.accumulation(*place)
    if accumulate is False or (accumulate is None and not mine.any()):
        dst.write(product)
    elif accumulate is None and not mine.all():
        dst.write(np.where(mine != 0, dst.array().astype(np.float32) + product, product))
    else:
        if not mine.all():
            _foreign(dst)
        dst.write(dst.array().astype(np.float32) + product)
    mine[...] = 1


def _foreign(dst: NkiTensor) -> None:
    """accumulate=True onto what no matmul wrote."""
    if not dst.is_defined():
        refuse("accumulate-virgin", "accumulate", "a matmul that overwrites first", "virgin PSUM")
    elif current().generation.number < 4:
        refuse("accumulate-foreign", "accumulate", "a matmul's result below", "another's data")


BLOCK = 32  # what VectorE transposes


def _transpose_shape(call: Call) -> None:
    (_, dst), (_, data) = call.tensors("dst", "data")
    if dst.shape[0] != data.free or dst.free != data.shape[0]:
        refuse("shape", "dst", f"{data.free} partitions of {data.shape[0]} elements", dst)
    if call.engine is Engine.vector:
        if max(data.shape[0], data.free) > BLOCK:
            refuse("size-limit", "data", f"<= {BLOCK} x {BLOCK} on VectorE", data)
        return
    if data.buffer is not Buffer.sbuf or dst.buffer is not Buffer.psum:
        refuse("buffer", "dst", "SBUF to PSUM on TensorE", f"{data!r} to {dst!r}")
    if data.free > 128:
        refuse("size-limit", "data", "<= 128 elements per partition", data)


def _transpose_engine(call: Call) -> Engine:
    (_, dst), (_, data) = call.tensors("dst", "data")
    tensor = data.buffer is Buffer.sbuf and dst.buffer is Buffer.psum
    return Engine.tensor if tensor else Engine.vector


@instruction(
    *(Engine.tensor, Engine.vector),
    dst=Operand("write"),
    data=Operand("read"),
    checks=[checks.same_dtype("data", "dst"), _transpose_shape, one_bank],
    choose=_transpose_engine,
)
def nc_transpose(dst: NkiTensor, data: NkiTensor, engine: Engine = Engine.unknown) -> None:
    """`data[P, F]` (free axes flattened) to `dst[F, P]`, bit exact."""
    dst.write(native(data, "data").T)
