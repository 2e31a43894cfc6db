"""DMA that adds: dma_compute, also into rows chosen by an offset vector."""

from collections.abc import Sequence

import numpy as np

from nki_kernels.simulator import checks
from nki_kernels.simulator.access import indirect_places
from nki_kernels.simulator.alu import Operator
from nki_kernels.simulator.context import refuse
from nki_kernels.simulator.dtypes import Array, cast
from nki_kernels.simulator.hardware import Engine
from nki_kernels.simulator.instruction import Call, Operand, instruction
from nki_kernels.simulator.isa.dma import ANYWHERE, gather, places_to_write, scatter, write_rows
from nki_kernels.simulator.isa.enums import oob_mode as oob_modes
from nki_kernels.simulator.tensor import NkiTensor

MOST_SOURCES = 16


def _sources(call: Call) -> None:
    srcs, scales = call.arguments["srcs"], call.arguments["scales"]
    if not 1 <= len(srcs) <= MOST_SOURCES:
        refuse("size-limit", "srcs", f"1 to {MOST_SOURCES} tensors", len(srcs))
    if scales is not None and (len(scales) != len(srcs) or any(s != 1.0 for s in scales)):
        refuse("value", "scales", "None, or 1.0 for each source", scales)


def _same_rows(one: NkiTensor, other: NkiTensor) -> bool:
    """Whether two indirect views are the same rows of the same tensor."""
    if one.storage is not other.storage or not other.gathers:
        return False
    return np.array_equal(indirect_places(one)[0], indirect_places(other)[0])


@instruction(
    Engine.dma,
    dst=Operand("write", ANYWHERE),
    srcs=Operand("read", ANYWHERE),
    operators={"reduce_op": {"add"}},
    checks=[checks.same_elements("dst", "srcs"), _sources],
)
def dma_compute(
    dst: NkiTensor,
    srcs: Sequence[NkiTensor],
    reduce_op: Operator,
    scales: Sequence[float] | None = None,
    unique_indices: bool = True,
    oob_mode: oob_modes = oob_modes.error,
) -> None:
    """The sum of up to 16 tensors in float32.

    A row that one of the gathered sources lacks stays as it is in dst (`oob_mode.skip`). With the
    indirect view of dst among `srcs`, the rest is added to its rows. Equal rows add up
    with `unique_indices=False`; otherwise the last one counts (the device promises nothing).
    """
    inside = None
    total: Array = np.zeros(dst.shape, np.float32)
    onto_itself = dst.gathers and any(_same_rows(dst, src) for src in srcs)
    for src in srcs:
        if onto_itself and _same_rows(dst, src):
            continue
        if src.gathers:
            values, here = gather(src, oob_mode)
            inside = here if inside is None else inside & here
        else:
            values = src.read("srcs")
        total = total + values.astype(np.float32).reshape(dst.shape)
    if onto_itself:
        _add_rows(dst, total, unique_indices, oob_mode, inside)
    elif dst.gathers:
        scatter(dst, cast(total, dst.dtype), oob_mode, inside)
    elif inside is None or inside.all():
        dst.write(total)
    else:
        write_rows(dst, cast(total, dst.dtype), inside)


def _add_rows(
    dst: NkiTensor, values: Array, unique: bool, mode: oob_modes, gathered: Array | None
) -> None:
    places, inside = places_to_write(dst, mode, gathered)
    gather(dst, mode)  # the rows must be defined
    flat = dst.storage.raw.view(dst.dtype.dtype)
    chosen, added = places[inside], values[inside]
    if unique:
        flat[chosen] = cast(flat[chosen].astype(np.float32) + added, dst.dtype)
        return
    for row, extra in zip(chosen, added, strict=True):
        flat[row] = cast(flat[row].astype(np.float32) + extra, dst.dtype)
