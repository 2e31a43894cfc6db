"""Views whose address is known at run time: `.ap` with offsets, `select`, `vector_select`,
`.indirect`, and the elements that they choose."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nki_kernels.simulator import dtypes
from nki_kernels.simulator.context import current, refuse, running_engine
from nki_kernels.simulator.dtypes import Array
from nki_kernels.simulator.hardware import Engine
from nki_kernels.simulator.memory import Buffer
from nki_kernels.simulator.scalars import RuntimeScalar
from nki_kernels.simulator.tensor import Dynamic, NkiTensor


def pattern(
    tensor: NkiTensor,
    steps: Sequence[Sequence[int]],
    offset: int,
    scalar: Any,
    vector: NkiTensor | None,
    indirect_dim: int,
    dtype: Any,
) -> NkiTensor:
    """`tensor.ap(...)`; see there. A vector offset replaces the first stride by the row's."""
    new = tensor.dtype if dtype is None else dtypes.find(dtype)
    if new is None:
        return refuse("dtype", "dtype", "a dtype of nl", dtype, "ap")  # type: ignore[no-any-return]
    begin = tensor.offset * tensor.itemsize
    if begin % new.itemsize:
        refuse("view", "dtype", f"an offset divisible by {new.itemsize} bytes", begin, "ap")
    strides, counts = [int(s) for s, _ in steps], [int(n) for _, n in steps]
    row = tensor.storage.row_bytes // new.itemsize
    if tensor.on_chip and strides[0] != row and counts[0] > 1:
        refuse("ap-partition-stride", "pattern", f"a first stride of {row}", strides[0], "ap")
    dynamic = None
    if scalar is not None and vector is not None:
        refuse("value", "vector_offset", "one of scalar_offset and vector_offset", "both", "ap")
    if tensor.is_indirect():
        refuse("view", "", ".ap of a view with a known address", "an indirect view", "ap")
    if scalar is not None or vector is not None:
        if not 0 <= indirect_dim < tensor.ndim:
            refuse("value", "indirect_dim", f"an axis of {list(tensor.shape)}", indirect_dim, "ap")
        step = tensor.strides[indirect_dim]
        if vector is None:
            _check_scalar(tensor, scalar, "scalar_offset", "ap")
            dynamic = Dynamic(scalar, None, step)
        else:
            _check_rows(tensor, vector, indirect_dim, "ap")
            if vector.shape[0] != counts[0]:
                refuse("shape", "vector_offset", f"shape ({counts[0]}, 1)", vector.shape, "ap")
            dynamic = Dynamic(None, vector, step, chooses="rows")
    made = NkiTensor(tensor.storage, new, counts, strides, begin // new.itemsize + offset, dynamic)
    low, high = made.extent()
    size = tensor.storage.raw.size // new.itemsize
    if dynamic is None and not 0 <= low <= high < size:
        refuse("ap-bounds", "pattern", f"elements 0..{size - 1}", f"{low}..{high}", "ap")
    return made


def selected(tensor: NkiTensor, dim: int, index: Any) -> NkiTensor:
    """`tensor.select(dim, index)` with an index that is read at run time."""
    _check_scalar(tensor, index, "index", "select")
    _check_fresh(tensor, dim, "select")
    dynamic = Dynamic(index, None, tensor.strides[dim], tensor.shape[dim])
    shape, strides = list(tensor.shape), list(tensor.strides)
    del shape[dim], strides[dim]
    return NkiTensor(tensor.storage, tensor.dtype, shape, strides, tensor.offset, dynamic)


def rows_selected(tensor: NkiTensor, dim: int, vector: Any) -> NkiTensor:
    """`tensor.vector_select(dim, vector)`."""
    _check_rows(tensor, vector, dim, "vector_select")
    _check_fresh(tensor, 0, "vector_select")
    dynamic = Dynamic(None, vector, tensor.strides[0], tensor.shape[0], "rows")
    shape = [vector.shape[0], *tensor.shape[1:]]
    return NkiTensor(tensor.storage, tensor.dtype, shape, tensor.strides, tensor.offset, dynamic)


def columns_selected(tensor: NkiTensor, index: Any, count: int | None) -> NkiTensor:
    """`tensor.indirect(index, count)`."""
    op, generation = "indirect", current().generation
    if generation.number < 4:
        refuse("generation", "", "gen4", generation.name, op)
    if not tensor.on_chip or tensor.ndim != 2:
        refuse("shape", "", "an on-chip view of 2 axes", tensor, op)
    if not isinstance(index, NkiTensor) or index.dtype.kind not in ("int", "uint"):
        refuse("dtype", "index", "a tile of integers", index, op)
    if index.buffer is not Buffer.sbuf or index.ndim != 2 or index.shape[0] != tensor.shape[0]:
        refuse("shape", "index", f"an SBUF tile of shape ({tensor.shape[0]}, K)", index, op)
    _check_fresh(tensor, 1, op)
    number = index.size if count is None else count
    if not isinstance(number, int) or number < 1:
        refuse("value", "num_elem", "an int above 0", repr(count), op)
    dynamic = Dynamic(None, index, tensor.strides[1], tensor.shape[1], "columns")
    shape, strides = (tensor.shape[0], number), (tensor.strides[0], 0)
    return NkiTensor(tensor.storage, tensor.dtype, shape, strides, tensor.offset, dynamic)


def _check_fresh(tensor: NkiTensor, dim: int, op: str) -> None:
    if tensor.is_indirect():
        refuse("view", "", "a view with a known address", "an indirect view", op)
    if tensor.strides[dim] == 0:
        refuse("view", "dim", "an axis that is no broadcast", tensor, op)


def _check_scalar(tensor: NkiTensor, scalar: Any, argument: str, op: str) -> None:
    expected = "a (1, 1) int32 tile in SBUF, a register or an NkiScalar"
    if isinstance(scalar, NkiTensor):
        if scalar.size != 1 or scalar.dtype not in (dtypes.int32, dtypes.uint32):
            refuse("shape", argument, expected, scalar, op)
        if scalar.buffer is not Buffer.sbuf:
            refuse("buffer", argument, expected, scalar, op)
    elif not isinstance(scalar, RuntimeScalar):
        refuse("dtype", argument, expected, scalar, op)
    elif tensor.on_chip and scalar.bits > 32:
        refuse("dtype", argument, "32 bits on the chip", f"{scalar.bits} bits", op)


def _check_rows(tensor: NkiTensor, vector: Any, dim: int, op: str) -> None:
    if tensor.on_chip or dim != 0:
        refuse("buffer", "vector_offset", "an HBM tensor, and its axis 0", tensor, op)
    if not isinstance(vector, NkiTensor) or vector.dtype not in (dtypes.int32, dtypes.uint32):
        refuse("dtype", "vector_offset", "a (P, 1) int32 or uint32 tile", vector, op)
    if vector.buffer is not Buffer.sbuf:
        refuse("buffer", "vector_offset", "a tile in SBUF", vector, op)
    if vector.ndim != 2 or vector.shape[1] != 1:
        refuse("shape", "vector_offset", "shape (P, 1)", vector.shape, op)


def indirect_places(tensor: NkiTensor) -> tuple[Array, Array]:
    """Element numbers of an indirect view, and which of its rows lie inside the storage.

    Returns: int64 of the view's shape (rows outside: 0), bool [P].
    """
    here = tensor
    assert here.gathers
    rows = here.dynamic.vector.read("vector_offset").reshape(-1).astype(np.int64)
    first = here.offset + rows * here.dynamic.step
    inner = np.zeros(here.shape[1:], np.int64)
    for axis, (count, stride) in enumerate(zip(here.shape[1:], here.strides[1:], strict=True)):
        inner = inner + (np.arange(count) * stride).reshape([-1] + [1] * (here.ndim - 2 - axis))
    size = here.storage.raw.size // here.itemsize
    inside = (first + inner.min() >= 0) & (first + inner.max() < size)
    if here.dynamic.limit is not None:
        inside &= (rows >= 0) & (rows < here.dynamic.limit)
    first = np.where(inside, first, 0).reshape([-1] + [1] * (here.ndim - 1))
    return first + np.where(inside.reshape(first.shape), inner, 0), inside


def read_columns(tensor: NkiTensor, argument: str) -> Array:
    """The elements [P, num_elem] of an `.indirect` view, in storage dtype."""
    places, storage = _column_places(tensor, argument), tensor.storage
    if storage.defined is not None:
        defined = storage.defined.reshape(-1, tensor.itemsize)
        if not defined[places].all():
            refuse("read-undefined", argument, "columns that were written before", tensor)
    found: Array = storage.raw.view(tensor.dtype.dtype)[places]
    return found


def write_columns(tensor: NkiTensor, values: Array) -> None:
    """Write values of the tensor's dtype to the columns of an `.indirect` view."""
    places, storage = _column_places(tensor, "dst"), tensor.storage
    storage.raw.view(tensor.dtype.dtype)[places] = values.reshape(places.shape)
    if storage.defined is not None:
        storage.defined.reshape(-1, tensor.itemsize)[places] = 1


def _column_places(tensor: NkiTensor, argument: str) -> Array:
    """Element numbers [P, num_elem] in the storage."""
    if tensor.gathers:
        refuse("engine", argument, "a DMA for rows that a vector chooses", tensor)
    engine = running_engine()
    if engine in (Engine.dma, Engine.sync):
        refuse("engine", argument, "a compute engine for .indirect", f"{engine.name}, {tensor!r}")
    index, group = tensor.dynamic.vector.read("index"), 32 if engine is Engine.tensor else 16
    (rows, count), most = tensor.shape, group * index.shape[1]
    if rows % group or count > most:
        expected = f"partitions in groups of {group}, and num_elem <= {most}"
        refuse("size-limit", argument, expected, f"{rows} partitions, num_elem {count}")
    i = np.arange(count)
    chosen = index.reshape(-1, group, index.shape[1])[:, i % group, i // group].astype(np.int64)
    if (chosen < 0).any() or (chosen >= tensor.dynamic.limit).any():
        expected = f"columns from 0 below {tensor.dynamic.limit}"
        refuse("index-bounds", argument, expected, f"{chosen.min()}..{chosen.max()}")
    first = tensor.offset + np.arange(rows)[:, None] * tensor.strides[0]
    places: Array = first + np.repeat(chosen, group, axis=0) * tensor.dynamic.step
    return places
