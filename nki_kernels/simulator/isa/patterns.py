"""GpSimd's address patterns: iota, affine_select, nc_n_gather."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nki_kernels.simulator import checks
from nki_kernels.simulator.alu import COMPARE, Operator
from nki_kernels.simulator.context import refuse
from nki_kernels.simulator.dtypes import Array, cast, uint32
from nki_kernels.simulator.hardware import Engine
from nki_kernels.simulator.instruction import SBUF, Call, Operand, instruction
from nki_kernels.simulator.isa.operands import native, rows
from nki_kernels.simulator.operators import FUNCTIONS
from nki_kernels.simulator.tensor import NkiTensor

G = Engine.gpsimd
EQUAL: Any = FUNCTIONS["equal"]


def _pattern_size(call: Call) -> None:
    dst, pattern = call.arguments["dst"], call.arguments["pattern"]
    count = int(np.prod([number for _, number in pattern]))
    if not 1 <= len(pattern) <= 4 or count != dst.free:
        refuse("element-count", "pattern", f"1-4 [step, number] of {dst.free} elements", pattern)


def ramp(
    partitions: int, pattern: Sequence[Sequence[int]], offset: int, channel_multiplier: int
) -> Array:
    """`offset + p * channel_multiplier + sum(index * step)` as int64 [P, N]."""
    values = offset + channel_multiplier * np.arange(partitions, dtype=np.int64).reshape(-1, 1)
    for step, number in pattern:
        values = (values[:, :, None] + step * np.arange(number)).reshape(partitions, -1)
    return values


@instruction(G, dst=Operand("write", SBUF), checks=[_pattern_size])
def iota(
    dst: NkiTensor,
    pattern: Sequence[Sequence[int]],
    offset: int = 0,
    channel_multiplier: int = 0,
) -> None:
    """Integers `offset + p * channel_multiplier + sum(index * step)`, pattern [[step, number]]."""
    dst.write(ramp(dst.shape[0], pattern, offset, channel_multiplier))


@instruction(
    G,
    dst=Operand("write", SBUF),
    on_true_tile=Operand("read", SBUF),
    operators={"cmp_op": COMPARE},
    checks=[checks.elementwise("on_true_tile", "dst"), _pattern_size],
)
def affine_select(
    dst: NkiTensor,
    pattern: Sequence[Sequence[int]],
    channel_multiplier: int,
    on_true_tile: NkiTensor,
    on_false_value: float,
    cmp_op: Operator = EQUAL,
    offset: int = 0,
) -> None:
    """Keep an element where `cmp_op(offset + p * channel_multiplier + sum(index * step), 0)`."""
    where = ramp(dst.shape[0], pattern, offset, channel_multiplier)
    keep = cmp_op(where, np.int64(0)) != 0
    exact = dst.dtype == on_true_tile.dtype and not dst.dtype.is_float
    values = native(on_true_tile, "on_true_tile") if exact else rows(on_true_tile, "on_true_tile")
    other = np.asarray(on_false_value, np.float32)
    dst.write(np.where(keep, values, cast(other, dst.dtype) if exact else other))


@instruction(
    G,
    dst=Operand("write", SBUF),
    data=Operand("read", SBUF),
    indices=Operand("read", SBUF, frozenset({uint32})),
    checks=[
        checks.elementwise("indices", "dst"),
        checks.same_partitions("data", "dst"),
        checks.same_dtype("data", "dst"),
    ],
)
def nc_n_gather(dst: NkiTensor, data: NkiTensor, indices: NkiTensor) -> None:
    """Per partition: `dst[p, i] = data[p, indices[p, i]]`, free axes flattened."""
    places = native(indices, "indices").astype(np.int64)
    if places.max() >= data.free:
        refuse("dma-bounds", "indices", f"indices below {data.free}", int(places.max()))
    dst.write(np.take_along_axis(native(data, "data"), places, axis=1))
