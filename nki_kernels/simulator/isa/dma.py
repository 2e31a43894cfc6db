"""DMA: dma_copy with gather and scatter, dma_transpose."""

from collections.abc import Sequence

import numpy as np

from nki_kernels.simulator import checks
from nki_kernels.simulator.access import indirect_places
from nki_kernels.simulator.context import current, refuse
from nki_kernels.simulator.dtypes import Array, cast
from nki_kernels.simulator.hardware import Engine
from nki_kernels.simulator.instruction import HBM, SBUF, Call, Operand, instruction
from nki_kernels.simulator.isa.enums import dge_mode as dge_modes
from nki_kernels.simulator.isa.enums import oob_mode as oob_modes
from nki_kernels.simulator.tensor import NkiTensor

ANYWHERE = HBM | SBUF
DEFAULT_AXES = {2: (1, 0), 3: (2, 1, 0), 4: (3, 1, 2, 0)}


def _dge(call: Call) -> None:
    """Hardware descriptor generation: gen3 on, equal dtypes, no offset vectors."""
    mode, engine = call.arguments["dge_mode"], call.arguments.get("engine")
    priority = call.arguments["priority"]
    if priority is not None and current().generation.number < 4:
        refuse("generation", "priority", "gen4", current().generation.name)
    if priority is not None and (type(priority) is not int or not 0 <= priority <= 3):
        refuse("value", "priority", "an int in 0..3, the most urgent first", priority)
    if mode is not dge_modes.hwdge:
        if engine not in (None, Engine.dma, Engine.unknown):
            refuse("dma-engine", "engine", "dge_mode.hwdge with it", f"dge_mode.{mode.name}")
        return
    if current().generation.number < 3:
        refuse("generation", "dge_mode", "gen3 or newer for hwdge", current().generation.name)
    (_, dst), (_, src) = call.tensors("dst", "src")
    if dst.dtype != src.dtype:
        refuse("same-dtype", "dst", f"{src.dtype}, as src, with hwdge", dst)
    for name, tensor in (("dst", dst), ("src", src)):
        if tensor.gathers:
            refuse("value", "dge_mode", "swdge for a vector_offset", f"hwdge, {name} {tensor!r}")
    if engine not in (None, Engine.dma, Engine.unknown, Engine.sync, Engine.scalar):
        refuse("engine", "engine", "sync or scalar with hwdge", engine)


@instruction(
    Engine.dma,
    dst=Operand("write", ANYWHERE),
    src=Operand("read", ANYWHERE),
    checks=[checks.same_elements("src", "dst"), _dge],
)
def dma_copy(
    dst: NkiTensor,
    src: NkiTensor,
    priority: int | None = None,
    oob_mode: oob_modes = oob_modes.error,
    dge_mode: dge_modes = dge_modes.unknown,
    engine: Engine = Engine.unknown,
) -> None:
    """Copy between HBM and SBUF, or within one, in row-major order of both.

    Unequal dtypes go through float32. With a vector offset, rows are gathered (src) or scattered
    (dst); a row outside is an error, or leaves dst untouched with `oob_mode.skip`.
    """
    if src.gathers:
        values, inside = gather(src, oob_mode)
    else:
        values, inside = src.read("src"), None
    if dst.dtype != src.dtype:
        if "packed" in (dst.dtype.kind, src.dtype.kind):
            refuse("same-dtype", "dst", f"{src.dtype}, as src: packed elements", dst)
        values = cast(values.astype(np.float32), dst.dtype)
    if dst.gathers:
        scatter(dst, values, oob_mode, inside)
    elif inside is None or inside.all():
        dst.write(values)
    elif inside.any():
        write_rows(dst, values, inside)


def refuse_outside(inside: Array, mode: oob_modes, argument: str) -> None:
    """Refuse rows outside the tensor unless they are to be skipped."""
    if mode is oob_modes.error and not inside.all():
        row = int(np.argmin(inside))
        refuse("dma-bounds", argument, "rows inside the tensor", f"row of partition {row} outside")


def gather(src: NkiTensor, mode: oob_modes) -> tuple[Array, Array]:
    """The elements of an indirect view, and which of its rows lie inside."""
    places, inside = indirect_places(src)
    refuse_outside(inside, mode, "src")
    flat = src.storage.raw.view(src.dtype.dtype)
    defined = src.storage.defined
    if defined is not None and not defined.reshape(-1, src.itemsize)[places[inside], 0].all():
        refuse("read-undefined", "src", "rows that were written before", src)
    return flat[places], inside


def places_to_write(dst: NkiTensor, mode: oob_modes, gathered: Array | None) -> tuple[Array, Array]:
    """The elements of an indirect dst, and which of its rows are written: those inside whose
    sources were (`gathered`; None: all)."""
    places, inside = indirect_places(dst)
    refuse_outside(inside, mode, "dst")
    if gathered is None or gathered.all():
        return places, inside
    _same_axis(dst, gathered)
    return places, inside & gathered


def scatter(dst: NkiTensor, values: Array, mode: oob_modes, gathered: Array | None) -> None:
    """Write values of dst's dtype to the rows of an indirect view; see `places_to_write`."""
    places, inside = places_to_write(dst, mode, gathered)
    chosen, storage = places[inside], dst.storage
    storage.raw.view(dst.dtype.dtype)[chosen] = values.reshape(places.shape)[inside]
    if storage.defined is not None:
        storage.defined.reshape(-1, dst.itemsize)[chosen] = 1


def _same_axis(dst: NkiTensor, inside: Array) -> None:
    if dst.shape[0] != inside.size:
        refuse("shape", "dst", f"{inside.size} rows on axis 0 with oob_mode.skip", dst)


def write_rows(dst: NkiTensor, values: Array, inside: Array) -> None:
    """Write the gathered rows that were inside; needs the row axis to be dst's axis 0."""
    _same_axis(dst, inside)
    rows = values.reshape(dst.shape)
    for row in np.flatnonzero(inside):
        dst[int(row) : int(row) + 1].write(rows[row : row + 1])


def _transposed(call: Call) -> None:
    src, dst, axes = (call.arguments[name] for name in ("src", "dst", "axes"))
    axes = call.arguments["axes"] = tuple(axes) if axes is not None else DEFAULT_AXES.get(src.ndim)
    if axes not in DEFAULT_AXES.values() or len(axes or ()) != src.ndim:
        allowed = ", ".join(str(order) for order in DEFAULT_AXES.values())
        refuse("value", "axes", f"one of {allowed}, of src's rank", axes)
    expected = tuple(src.shape[axis] for axis in axes or ())
    if dst.shape != expected:
        refuse("shape", "dst", f"shape {expected}", dst)
    rows, last = src.shape[0], src.shape[-1]
    if call.arguments["dge_mode"] is dge_modes.hwdge:
        fits = rows == 16 if src.ndim == 2 else rows in (1, 2, 4, 8, 16)
        if not fits or last > 128 or src.itemsize != 2:
            refuse(
                *("size-limit", "src", "with hwdge: 16 rows (1, 2, 4, 8, 16 above rank 2)"),
                *(f"of <= 128 two-byte elements; {src!r}",),
            )


@instruction(
    Engine.dma,
    dst=Operand("write", SBUF),
    src=Operand("read", ANYWHERE),
    checks=[checks.same_dtype("src", "dst"), _transposed, _dge],
)
def dma_transpose(
    dst: NkiTensor,
    src: NkiTensor,
    axes: Sequence[int] | None = None,
    priority: int | None = None,
    dge_mode: dge_modes = dge_modes.unknown,
    oob_mode: oob_modes = oob_modes.error,
    engine: Engine = Engine.unknown,
) -> None:
    """`src` with its axes in the order (1, 0), (2, 1, 0) or (3, 1, 2, 0), by its rank.

    `priority` (gen4) changes when it runs, not its value.
    """
    if src.gathers:
        values, inside = gather(src, oob_mode)
        if not inside.all():
            refuse("value", "oob_mode", "error: a transpose that skips is not described", oob_mode)
    else:
        values = src.read("src")
    dst.write(values.transpose(axes))
