"""The tensor engine: nc_matmul and nc_transpose."""

import numpy as np

from nki_kernels.simulator import checks
from nki_kernels.simulator.context import current, refuse
from nki_kernels.simulator.dtypes import (
    bfloat16,
    float8_e4m3,
    float8_e4m3fn,
    float8_e5m2,
    float16,
    float32,
    tfloat32,
)
from nki_kernels.simulator.hardware import PSUM_BANK_BYTES, Engine
from nki_kernels.simulator.instruction import PSUM, SBUF, Call, Operand, instruction
from nki_kernels.simulator.isa.enums import matmul_perf_mode
from nki_kernels.simulator.isa.operands import native, rows
from nki_kernels.simulator.memory import Buffer
from nki_kernels.simulator.tensor import NkiTensor

PRODUCTS = frozenset(
    {float32, tfloat32, bfloat16, float16, float8_e4m3, float8_e4m3fn, float8_e5m2}
)
WIDE = (float32, tfloat32)  # each goes only with itself


def _matmul_shapes(call: Call) -> None:
    (_, dst), (_, left), (_, right) = call.tensors("dst", "stationary", "moving")
    most = current().generation.moving_max
    if left.shape[0] != right.shape[0]:
        refuse("shape", "moving", f"{left.shape[0]} partitions, as stationary", right)
    if right.free > most * (2 if dst.dtype == bfloat16 and most > 512 else 1):
        refuse("size-limit", "moving", f"<= {most} elements per partition", right)
    if dst.shape[0] != left.free or dst.free != right.free:
        refuse("shape", "dst", f"{left.free} partitions of {right.free} elements", dst)


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
    if mode is not matmul_perf_mode.none:
        if current().generation.number < 3:
            refuse("generation", "perf_mode", "gen3 or newer", mode.name)
        refuse("value", "perf_mode", "none: the other modes are not simulated", mode.name)


@instruction(
    Engine.tensor,
    dst=Operand("write", PSUM),
    stationary=Operand("read", SBUF, PRODUCTS, max_free=128),
    moving=Operand("read", SBUF, PRODUCTS),
    checks=[_matmul_shapes, _matmul_dtypes, one_bank, _perf_mode],
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
    """
    product = rows(stationary, "stationary").T @ rows(moving, "moving")
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
