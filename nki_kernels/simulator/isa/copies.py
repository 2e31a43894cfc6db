"""Copies and constants on the chip: tensor_copy, memset, tensor_copy_predicated, shuffle."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nki_kernels.simulator.checks import elementwise, not_both_psum, same_dtype
from nki_kernels.simulator.context import refuse
from nki_kernels.simulator.dtypes import bfloat16, cast, float16, uint8, uint16, uint32
from nki_kernels.simulator.hardware import Engine
from nki_kernels.simulator.instruction import Call, Operand, instruction
from nki_kernels.simulator.isa.operands import native
from nki_kernels.simulator.memory import Buffer
from nki_kernels.simulator.tensor import NkiTensor

QUADRANT = 32
LEAVE = 255


@instruction(
    *(Engine.vector, Engine.scalar, Engine.gpsimd),
    dst=Operand("write"),
    src=Operand("read"),
    engine_since={Engine.scalar: 3},
    checks=[elementwise("src", "dst")],
)
def tensor_copy(dst: NkiTensor, src: NkiTensor, engine: Engine = Engine.unknown) -> None:
    """Copy a tile. Bit exact for equal dtypes, else through float32."""
    same = dst.dtype == src.dtype
    dst.write(src.read("src") if same else src.read32("src"))


def _memset_engine(call: Call) -> Engine:
    dst = call.arguments["dst"]
    plain = dst.buffer is Buffer.psum or dst.dtype in (bfloat16, float16)
    return Engine.vector if plain else Engine.gpsimd


def _value_type(call: Call) -> None:
    value, dst = call.arguments["value"], call.arguments["dst"]
    if dst.dtype.kind == "packed" and value != 0:
        refuse("value", "value", f"0 for {dst.dtype}", value)
    if isinstance(value, (float, np.floating)) and not dst.dtype.is_float:
        if not float(value).is_integer():
            refuse("value", "value", f"an int for {dst.dtype}", value)
        refuse("memset-type", "value", f"an int for {dst.dtype}", repr(value))
    elif isinstance(value, (int, np.integer)) and dst.dtype.is_float:
        refuse("memset-type", "value", f"a float for {dst.dtype}", repr(value))
    elif not isinstance(value, (int, float, np.number)):
        refuse("signature", "value", "a number", repr(value))


@instruction(
    *(Engine.vector, Engine.gpsimd),
    dst=Operand("write"),
    checks=[_value_type],
    choose=_memset_engine,
)
def memset(dst: NkiTensor, value: float, engine: Engine = Engine.unknown) -> None:
    """Fill a tile with a number of its type."""
    kind = np.float32 if dst.dtype.is_float else np.int64
    dst.write(np.full(dst.shape, value, kind))


@instruction(
    Engine.vector,
    dst=Operand("write"),
    src=Operand("read", number=True),
    predicate=Operand("read", dtypes=frozenset({uint8, uint16, uint32})),
    checks=[
        elementwise("dst", "src", "predicate"),
        same_dtype("dst", "src"),
        not_both_psum("src", "predicate"),
    ],
)
def tensor_copy_predicated(
    dst: NkiTensor, src: Any, predicate: NkiTensor, reverse_pred: bool = False
) -> None:
    """Copy a tile or a number where the predicate is not 0 (where it is 0 with `reverse_pred`);
    keep dst elsewhere."""
    chosen = (native(predicate, "predicate") != 0) ^ reverse_pred
    number = np.full(chosen.shape, src) if not isinstance(src, NkiTensor) else None
    source = native(src, "src") if number is None else cast(number, dst.dtype)
    if chosen.all():
        dst.write(source)
    else:
        dst.write(np.where(chosen, source, native(dst, "dst")))


def _shuffle(call: Call) -> None:
    (_, dst), (_, src) = call.tensors("dst", "src")
    mask = call.arguments["shuffle_mask"]
    if len(mask) != QUADRANT:
        refuse("shape", "shuffle_mask", f"{QUADRANT} entries", len(mask))
    if src.free != dst.free:
        refuse("element-count", "dst", f"{src.free} elements per partition, as src", dst)
    wrong = [entry for entry in mask if not (0 <= entry < QUADRANT or entry == LEAVE)]
    if wrong:
        refuse("value", "shuffle_mask", f"0..{QUADRANT - 1} or {LEAVE}", wrong[0])


@instruction(
    Engine.vector,
    dst=Operand("write"),
    src=Operand("read"),
    checks=[same_dtype("src", "dst"), _shuffle],
)
def nc_stream_shuffle(dst: NkiTensor, src: NkiTensor, shuffle_mask: Sequence[int]) -> None:
    """In each quadrant of 32 partitions: row i gets row shuffle_mask[i]; 255 leaves it.

    src may have fewer partitions than dst as long as the mask stays inside them: a mask of zeros
    spreads one row over a quadrant.
    """
    rows = np.arange(dst.shape[0])
    entries = np.asarray(shuffle_mask)[rows % QUADRANT]
    kept = rows[entries != LEAVE]
    source = (kept - kept % QUADRANT) + entries[kept]
    if source.size and source.max() >= src.shape[0]:
        got = f"row {source.max()} of {src!r}"
        refuse("value", "shuffle_mask", f"rows below {src.shape[0]}", got)
    values = native(src, "src")[source]
    if len(kept) == len(rows):
        dst.write(values)
        return
    for row, value in zip(kept.tolist(), values, strict=True):
        dst[row : row + 1].write(value)
