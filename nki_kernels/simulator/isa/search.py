"""The eight largest of a row: max8, nc_find_index8, nc_match_replace8."""

import numpy as np

from nki_kernels.simulator import checks
from nki_kernels.simulator.context import refuse
from nki_kernels.simulator.dtypes import Array, uint16, uint32
from nki_kernels.simulator.hardware import Engine
from nki_kernels.simulator.instruction import Call, Operand, instruction
from nki_kernels.simulator.isa.operands import rows
from nki_kernels.simulator.tensor import NkiTensor

V, SLOTS = Engine.vector, 8
ROW = Operand("read", min_free=8, max_free=16384)
EIGHT = Operand("read", min_free=SLOTS, max_free=SLOTS)
INDEX = Operand("write", dtypes=frozenset({uint16, uint32}), min_free=SLOTS, max_free=SLOTS)
OPTIONAL_INDEX = Operand(
    "write", dtypes=INDEX.dtypes, min_free=SLOTS, max_free=SLOTS, optional=True
)


@instruction(
    V,
    dst=Operand("write", min_free=SLOTS, max_free=SLOTS),
    src=ROW,
    checks=[checks.same_partitions("src", "dst")],
)
def max8(dst: NkiTensor, src: NkiTensor) -> None:
    """The eight largest of each row, largest first."""
    values = rows(src, "src")
    top = np.partition(values, values.shape[1] - SLOTS, axis=1)[:, -SLOTS:]
    dst.write(np.sort(top, axis=1)[:, ::-1])


def find(values: Array, wanted: Array, order: range) -> Array:
    """Column of each wanted value [P, 8], the first that no earlier slot (of `order`) took; -1."""
    partitions = np.arange(len(values))
    taken = np.zeros(values.shape, np.bool_)
    found = np.full(wanted.shape, -1, np.int64)
    for slot in order:
        match = (values == wanted[:, slot : slot + 1]) & ~taken
        hit = match.any(axis=1)
        place = match.argmax(axis=1)
        found[hit, slot] = place[hit]
        taken[partitions[hit], place[hit]] = True
    return found


def _miss(dst: NkiTensor, found: Array) -> Array:
    """Misses are all ones."""
    return np.where(found < 0, np.iinfo(dst.dtype.dtype).max, found)


@instruction(
    V, dst=INDEX, data=ROW, vals=EIGHT, checks=[checks.same_partitions("data", "vals", "dst")]
)
def nc_find_index8(dst: NkiTensor, data: NkiTensor, vals: NkiTensor) -> None:
    """First column of each of the eight values; equal values advance; all ones if missing."""
    dst.write(_miss(dst, find(rows(data, "data"), rows(vals, "vals"), range(SLOTS))))


def _replace_shapes(call: Call) -> None:
    data, vals = call.arguments["data"], call.arguments["vals"]
    if vals.shape[0] != data.shape[0]:
        refuse("shape", "vals", f"{data.shape[0]} partitions, as data", vals)


@instruction(
    V,
    dst=Operand("write"),
    data=ROW,
    vals=EIGHT,
    dst_idx=OPTIONAL_INDEX,
    checks=[checks.elementwise("data", "dst"), _replace_shapes],
)
def nc_match_replace8(
    dst: NkiTensor,
    data: NkiTensor,
    vals: NkiTensor,
    imm: float,
    dst_idx: NkiTensor | None = None,
) -> None:
    """Replace the first match of each value by `imm`; equal values from the last slot to the first.

    `dst_idx` gets the columns, all ones for a miss.
    """
    values = rows(data, "data").copy()
    found = find(values, rows(vals, "vals"), range(SLOTS - 1, -1, -1))
    partition, slot = np.nonzero(found >= 0)
    values[partition, found[partition, slot]] = imm
    dst.write(values)
    if dst_idx is not None:
        dst_idx.write(_miss(dst_idx, found))
