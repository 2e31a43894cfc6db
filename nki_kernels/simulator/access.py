"""Access patterns with run-time offsets: `.ap`, and the gather and scatter of its rows."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nki_kernels.simulator import dtypes
from nki_kernels.simulator.context import refuse
from nki_kernels.simulator.dtypes import Array
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
    if scalar is not None or vector is not None:
        _check_offsets(tensor, scalar, vector, indirect_dim, counts)
        dynamic = Dynamic(scalar, vector, math.prod(tensor.shape[indirect_dim + 1 :]))
    made = NkiTensor(tensor.storage, new, counts, strides, begin // new.itemsize + offset, dynamic)
    low, high = made.extent()
    size = tensor.storage.raw.size // new.itemsize
    if dynamic is None and not 0 <= low <= high < size:
        refuse("ap-bounds", "pattern", f"elements 0..{size - 1}", f"{low}..{high}", "ap")
    return made


def _check_offsets(
    tensor: NkiTensor, scalar: Any, vector: Any, indirect_dim: int, counts: list[int]
) -> None:
    if not 0 <= indirect_dim < tensor.ndim:
        refuse("value", "indirect_dim", f"an axis of {list(tensor.shape)}", indirect_dim, "ap")
    if isinstance(scalar, NkiTensor):
        if scalar.size != 1 or scalar.dtype not in (dtypes.int32, dtypes.uint32):
            refuse("shape", "scalar_offset", "a (1, 1) int32 tile or a register", scalar, "ap")
    elif scalar is not None and not isinstance(scalar, RuntimeScalar):
        refuse("dtype", "scalar_offset", "a (1, 1) int32 tile or a register", scalar, "ap")
    if vector is None:
        return
    if tensor.on_chip or indirect_dim != 0:
        refuse("buffer", "vector_offset", "an HBM tensor and indirect_dim=0", tensor, "ap")
    if not isinstance(vector, NkiTensor) or vector.dtype not in (dtypes.int32, dtypes.uint32):
        refuse("dtype", "vector_offset", "a (P, 1) int32 or uint32 tile", vector, "ap")
    if vector.shape != (counts[0], 1):
        refuse("shape", "vector_offset", f"shape ({counts[0]}, 1)", vector.shape, "ap")


def indirect_places(tensor: NkiTensor) -> tuple[Array, Array]:
    """Element numbers of an indirect view, and which of its rows lie inside the storage.

    Returns: int64 of the view's shape (rows outside: 0), bool [P].
    """
    here = tensor.resolve()
    assert here.is_indirect()
    rows = here.dynamic.vector.read("vector_offset").reshape(-1).astype(np.int64)
    first = here.offset + rows * here.dynamic.step
    inner = np.zeros(here.shape[1:], np.int64)
    for axis, (count, stride) in enumerate(zip(here.shape[1:], here.strides[1:], strict=True)):
        inner = inner + (np.arange(count) * stride).reshape([-1] + [1] * (here.ndim - 2 - axis))
    size = here.storage.raw.size // here.itemsize
    inside = (first + inner.min() >= 0) & (first + inner.max() < size)
    first = np.where(inside, first, 0).reshape([-1] + [1] * (here.ndim - 1))
    return first + np.where(inside.reshape(first.shape), inner, 0), inside
