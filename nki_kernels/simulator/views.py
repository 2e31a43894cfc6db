"""Views: indexing, the view methods of a tensor and its access patterns. None copies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any, Self

from nki_kernels.simulator import dtypes
from nki_kernels.simulator.context import refuse
from nki_kernels.simulator.dtypes import Dtype
from nki_kernels.simulator.memory import Buffer, Storage

View = tuple[list[int], list[int], int]


def ds(start: int, size: int) -> slice:
    """`nl.ds(start, size)`: the slice of `size` elements from `start`."""
    known = isinstance(start, Integral)
    return slice(int(start), int(start) + size, None) if known else slice(start, size, "ds")


def normal_index(tensor: Views, index: Any) -> View:
    """Shape, strides and offset of `tensor[index]`.

    On-chip tensors keep two axes: an int on axis 0 becomes a slice of one, and so does an int on
    the last free axis that is left.
    """
    items = list(index) if isinstance(index, tuple) else [index]
    if items.count(Ellipsis) > 1 or len(items) - items.count(Ellipsis) > tensor.ndim:
        refuse("index-bounds", "index", f"at most {tensor.ndim} indices", index, "tensor[...]")
    if Ellipsis not in items:
        items.append(Ellipsis)
    at = items.index(Ellipsis)
    items[at : at + 1] = [slice(None)] * (tensor.ndim - len(items) + 1)
    kept = [axis for axis, item in enumerate(items) if isinstance(item, slice)]
    if tensor.on_chip:
        kept = sorted({0, *kept})
        if len(kept) == 1 and tensor.ndim > 1:
            kept.append(tensor.ndim - 1)
    shape, strides, offset = [], [], tensor.offset
    for axis, (item, extent, stride) in enumerate(
        zip(items, tensor.shape, tensor.strides, strict=True)
    ):
        start, count, step = index_range(item, extent, axis)
        offset += start * stride
        if axis in kept:
            shape.append(count)
            strides.append(stride * step)
    return shape, strides, offset


def index_range(item: Any, extent: int, axis: int) -> tuple[int, int, int]:
    """Start, count and step of one index along an axis of `extent`."""
    where = f"index {axis}"
    if isinstance(item, slice):
        step = 1 if item.step is None else item.step
        start = 0 if item.start is None else item.start
        stop = extent if item.stop is None else item.stop
        if not all(isinstance(value, Integral) for value in (start, stop, step)) or step < 1:
            refuse("index-bounds", where, "compile-time ints and a step >= 1", item, "tensor[...]")
        start, stop = (int(value + extent if value < 0 else value) for value in (start, stop))
        if not 0 <= start < stop <= extent:
            refuse("index-bounds", where, f"0 <= start < stop <= {extent}", item, "tensor[...]")
        return start, -(-(stop - start) // int(step)), int(step)
    if not hasattr(item, "__index__") or isinstance(item, bool):
        refuse("index-bounds", where, "an int, a slice, nl.ds or ...", repr(item), "tensor[...]")
    value = int(item)
    if not -extent <= value < extent:
        refuse("index-bounds", where, f"an int below {extent}", value, "tensor[...]")
    return value % extent, 1, 1


def reshaped_strides(
    shape: Sequence[int], strides: Sequence[int], new: Sequence[int]
) -> list[int] | None:
    """Strides of the same elements under shape `new`; None if that takes a copy."""
    groups: list[tuple[int, int]] = []  # (elements, innermost stride) of runs that are dense
    for extent, stride in zip(shape, strides, strict=True):
        if extent == 1:
            continue
        if groups and groups[-1][1] == stride * extent:
            groups[-1] = (groups[-1][0] * extent, stride)
        else:
            groups.append((extent, stride))
    result: list[int] = []
    left, stride = 1, 1
    for extent in reversed(new):
        if extent == 1:
            result.append(stride)
            continue
        if left == 1:
            if not groups:
                return None
            left, stride = groups.pop()
        if left % extent:
            return None
        result.append(stride)
        stride *= extent
        left //= extent
    return result[::-1]


class Views:
    """A dtype, a shape and strides over a storage, in elements; axis 0 is the partition axis of
    on-chip tensors. `NkiTensor` adds how instructions read and write it."""

    __slots__ = ("dtype", "dynamic", "offset", "shape", "storage", "strides")

    def __init__(
        self,
        storage: Storage,
        dtype: Dtype,
        shape: Sequence[int],
        strides: Sequence[int],
        offset: int = 0,
        dynamic: Any = None,
    ) -> None:
        self.storage, self.dtype = storage, dtype
        self.shape, self.strides = tuple(shape), tuple(strides)
        self.offset, self.dynamic = offset, dynamic

    @property
    def buffer(self) -> Buffer:
        """Where it lies."""
        return self.storage.buffer

    @property
    def name(self) -> str:
        """The name given to its storage."""
        return self.storage.name

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(math.prod(self.shape))

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return int(self.dtype.itemsize)

    @property
    def on_chip(self) -> bool:
        """Whether it lies in SBUF or PSUM."""
        return self.storage.buffer.on_chip

    @property
    def row(self) -> int:
        """Elements of one partition of the storage (on-chip)."""
        return self.storage.row_bytes // self.itemsize

    @property
    def start_partition(self) -> int:
        """The first partition (on-chip)."""
        return self.offset // self.row

    @property
    def free(self) -> int:
        """Elements per partition."""
        return int(math.prod(self.shape[1:]))

    def __repr__(self) -> str:
        return f"{self.buffer!r} {self.dtype}{list(self.shape)}" + (
            f" {self.name!r}" if self.name else ""
        )

    @property
    def gathers(self) -> bool:
        """Whether an offset vector chooses the rows (axis 0)."""
        return self.dynamic is not None and self.dynamic.chooses == "rows"

    @property
    def picks(self) -> bool:
        """Whether an index tile chooses the columns: `.indirect`."""
        return self.dynamic is not None and self.dynamic.chooses == "columns"

    @property
    def _fixed(self) -> bool:
        """Whether axis 0 stays in its place: partitions, or rows that a vector chooses."""
        return self.on_chip or self.gathers

    def with_view(self, shape: Sequence[int], strides: Sequence[int], offset: int) -> Self:
        """The same storage and dtype through another view."""
        if self.picks:
            refuse("view", "", "a view first, then .indirect", "a view of .indirect", "indirect")
        return type(self)(self.storage, self.dtype, shape, strides, offset, self.dynamic)

    def __getitem__(self, index: Any) -> Self:
        shape, strides, offset = normal_index(self, index)
        if self.gathers and shape[:1] != [self.shape[0]]:
            expected = "all rows: an offset vector chooses them"
            refuse("view", "index 0", expected, index, "tensor[...]")
        return self.with_view(shape, strides, offset)

    def __len__(self) -> int:
        return self.shape[0]

    def _axis(self, dim: int, method: str, *, free: bool = False) -> int:
        if not -self.ndim <= dim < self.ndim:
            refuse("view", "dim", f"an axis of {list(self.shape)}", dim, method)
        dim %= self.ndim
        if free and self._fixed and dim == 0:
            refuse("partition-view", "dim", "an axis behind the partitions or rows", 0, method)
        return dim

    def slice(self, dim: int, start: int, end: int, step: int = 1) -> Self:
        """Elements start, start + step ... below `end` of one axis."""
        index = [slice(None)] * self.ndim
        index[self._axis(dim, "slice")] = slice(start, end, step)
        return self[tuple(index)]

    def select(self, dim: int, index: int) -> Self:
        """One element of an axis, which is dropped."""
        dim = self._axis(dim, "select", free=True)
        start, _, _ = index_range(index, self.shape[dim], dim)
        keep = [axis for axis in range(self.ndim) if axis != dim]
        return self.with_view(
            [self.shape[axis] for axis in keep],
            [self.strides[axis] for axis in keep],
            self.offset + start * self.strides[dim],
        )

    def permute(self, dims: Sequence[int]) -> Self:
        """Axes in another order; axis 0 stays on-chip."""
        if sorted(dims) != list(range(self.ndim)):
            refuse("view", "dims", f"an order of {self.ndim} axes", tuple(dims), "permute")
        if self._fixed and dims[0] != 0:
            refuse("partition-view", "dims", "axis 0 in its place", tuple(dims), "permute")
        return self.with_view(
            [self.shape[d] for d in dims], [self.strides[d] for d in dims], self.offset
        )

    def broadcast(self, dim: int, size: int) -> Self:
        """Repeat an axis of one element `size` times (stride 0)."""
        dim = self._axis(dim, "broadcast", free=True)
        if self.shape[dim] != 1:
            refuse("view", "dim", "an axis of size 1", f"size {self.shape[dim]}", "broadcast")
        shape, strides = list(self.shape), list(self.strides)
        shape[dim], strides[dim] = size, 0
        return self.with_view(shape, strides, self.offset)

    def expand_dim(self, dim: int) -> Self:
        """Insert an axis of size 1 at `dim`."""
        dim = dim + self.ndim + 1 if dim < 0 else dim
        if not int(self._fixed) <= dim <= self.ndim:
            refuse("partition-view", "dim", "a place behind the partition axis", dim, "expand_dim")
        shape, strides = list(self.shape), list(self.strides)
        shape.insert(dim, 1)
        strides.insert(dim, 0)
        return self.with_view(shape, strides, self.offset)

    def squeeze_dim(self, dim: int) -> Self:
        """Drop an axis of size 1."""
        dim = self._axis(dim, "squeeze_dim", free=True)
        if self.shape[dim] != 1:
            refuse("view", "dim", "an axis of size 1", f"size {self.shape[dim]}", "squeeze_dim")
        return self.select(dim, 0)

    def reshape(self, shape: Sequence[int]) -> Self:
        """The same elements under another shape (one -1 is inferred)."""
        new = list(shape)
        if new.count(-1) == 1:
            known = math.prod(extent for extent in new if extent != -1)
            new[new.index(-1)] = self.size // max(known, 1)
        if math.prod(new) != self.size:
            refuse("view", "shape", f"{self.size} elements", tuple(shape), "reshape")
        if self._fixed and (not new or new[0] != self.shape[0]):
            refuse("partition-view", "shape", f"axis 0 of {self.shape[0]}", tuple(new), "reshape")
        fixed = int(self._fixed)
        strides = reshaped_strides(self.shape[fixed:], self.strides[fixed:], new[fixed:])
        if strides is None:
            refuse("view", "shape", "a shape that needs no copy", tuple(new), "reshape")
        return self.with_view(new, [*self.strides[:fixed], *(strides or [])], self.offset)

    def reshape_dim(self, dim: int, shape: Sequence[int]) -> Self:
        """Split one axis into several (one -1 is inferred)."""
        dim = self._axis(dim, "reshape_dim", free=True)
        new = list(shape)
        if new.count(-1) == 1:
            known = math.prod(extent for extent in new if extent != -1)
            new[new.index(-1)] = self.shape[dim] // max(known, 1)
        if math.prod(new) != self.shape[dim]:
            refuse("view", "shape", f"{self.shape[dim]} elements", tuple(shape), "reshape_dim")
        steps = [self.strides[dim] * math.prod(new[i + 1 :]) for i in range(len(new))]
        return self.with_view(
            [*self.shape[:dim], *new, *self.shape[dim + 1 :]],
            [*self.strides[:dim], *steps, *self.strides[dim + 1 :]],
            self.offset,
        )

    def flatten_dims(self, start_dim: int, end_dim: int) -> Self:
        """Merge the axes start_dim ... end_dim (included) into one."""
        start = self._axis(start_dim, "flatten_dims", free=True)
        end = self._axis(end_dim, "flatten_dims") + 1
        shape = [math.prod(self.shape[start:end])]
        strides = reshaped_strides(self.shape[start:end], self.strides[start:end], shape)
        if strides is None:
            refuse("view", "dims", "axes that lie densely", self.strides[start:end], "flatten_dims")
        return self.with_view(
            [*self.shape[:start], *shape, *self.shape[end:]],
            [*self.strides[:start], *(strides or []), *self.strides[end:]],
            self.offset,
        )

    def rearrange(
        self,
        src_pattern: Sequence[Any],
        dst_pattern: Sequence[Any],
        fixed_sizes: dict[str, int] | None = None,
    ) -> Self:
        """Axes by name, as einops writes them: (("a", "b"), "c") splits axis 0 into a and b."""
        sizes, tensor = dict(fixed_sizes or {}), self
        names: list[str] = []
        if len(src_pattern) != self.ndim:
            refuse("view", "src_pattern", f"{self.ndim} axes", src_pattern, "rearrange")
        for axis, group in enumerate(src_pattern):
            parts = [group] if isinstance(group, str) else list(group)
            at = len(names)
            names += parts
            if len(parts) > 1:
                known = [sizes.get(part, -1) for part in parts]
                tensor = tensor.reshape_dim(at, known)
            elif sizes.setdefault(parts[0], self.shape[axis]) != self.shape[axis]:
                refuse(
                    "view", "fixed_sizes", f"{parts[0]} = {self.shape[axis]}", sizes, "rearrange"
                )
        groups = [[group] if isinstance(group, str) else list(group) for group in dst_pattern]
        order = [part for group in groups for part in group]
        if sorted(order) != sorted(names):
            refuse("view", "dst_pattern", f"the axes {names}", dst_pattern, "rearrange")
        tensor = tensor.permute([names.index(part) for part in order])
        for axis, group in enumerate(groups):
            if len(group) > 1:
                tensor = tensor.flatten_dims(axis, axis + len(group) - 1)
        return tensor

    def view(self, dtype: Any) -> Self:
        """The same bytes as another dtype; the last axis is scaled."""
        new = dtypes.find(dtype)
        if new is None:
            return refuse("dtype", "dtype", "a dtype of nl", dtype, "view")  # type: ignore[no-any-return]
        if self.is_indirect():
            refuse("view", "", "view(dtype) first, or .ap(dtype=)", "an indirect view", "view")
        old, size = self.itemsize, new.itemsize
        if old == size:
            return type(self)(self.storage, new, self.shape, self.strides, self.offset)
        scaled = [self.shape[-1] * old, *(s * old for s in self.strides[:-1]), self.offset * old]
        if self.strides[-1] != 1 or any(value % size for value in scaled):
            refuse("view", "dtype", f"a dense last axis divisible by {size} bytes", self, "view")
        last, *strides, offset = (value // size for value in scaled)
        return type(self)(self.storage, new, [*self.shape[:-1], last], [*strides, 1], offset)

    reinterpret_cast = view

    def get_pattern(self) -> list[list[int]]:
        """[[stride, count], ...]"""
        return [[s, n] for s, n in zip(self.strides, self.shape, strict=True)]

    def is_contiguous(self) -> bool:
        """Whether the elements (of a partition, on the chip) lie one after the other, in order."""
        shape, strides = self.shape[self.on_chip :], self.strides[self.on_chip :]
        size = math.prod(shape)
        dense = reshaped_strides(shape, strides, [size])
        return dense is not None and (size == 1 or dense[-1] == 1)

    def is_indirect(self) -> bool:
        """Whether its address is known at run time only: a scalar offset, chosen rows, columns."""
        return self.dynamic is not None
