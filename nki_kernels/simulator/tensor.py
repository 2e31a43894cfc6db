"""The tensor: a dtype, a shape and strides over a storage; how it is read and written."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nki_kernels.simulator.context import refuse
from nki_kernels.simulator.dtypes import Array, cast
from nki_kernels.simulator.ledger import Access
from nki_kernels.simulator.scalars import RuntimeScalar
from nki_kernels.simulator.views import Views


@dataclass(frozen=True)
class Dynamic:
    """An address that is known when the instruction runs.

    `scalar` is added times `step` elements. `vector` chooses "rows": partition p of the view reads
    row `vector[p]`, each `step` elements from the next, in place of its first stride; or "columns"
    (`.indirect`). `limit`: indices from 0 below it are inside; None: whatever lies in the storage.
    """

    scalar: "NkiTensor | RuntimeScalar | None"
    vector: "NkiTensor | None"
    step: int
    limit: int | None = None
    chooses: str = ""  # rows, columns


class NkiTensor(Views):
    """A tensor or a view of one. Attributes in elements of `dtype`; axis 0 is the partition axis
    of on-chip tensors."""

    __slots__ = ()
    __hash__ = object.__hash__

    @property
    def data(self) -> "NkiTensor":
        """Itself, as the `data` of a tile grid is a tensor."""
        return self

    def ap(
        self,
        pattern: Sequence[Sequence[int]],
        offset: int | None = None,
        scalar_offset: Any = None,
        vector_offset: Any = None,
        indirect_dim: int = 0,
        dtype: Any = None,
    ) -> "NkiTensor":
        """A raw access pattern [[stride, count], ...] over the storage.

        `offset` is added to the view's own (the documentation contradicts itself; composing is
        what works on hardware). Units are elements of `dtype`.
        """
        from nki_kernels.simulator.access import pattern as build

        return build(self, pattern, offset or 0, scalar_offset, vector_offset, indirect_dim, dtype)

    def select(self, dim: int, index: Any) -> "NkiTensor":
        """One element of an axis, which is dropped. A (1, 1) tile, a register or an `NkiScalar` as
        index is read when an instruction runs."""
        if not isinstance(index, (NkiTensor, RuntimeScalar)):
            return super().select(dim, index)
        from nki_kernels.simulator.access import selected

        return selected(self, self._axis(dim, "select", free=True), index)

    def vector_select(self, dim: int, vector_offset: Any) -> "NkiTensor":
        """Rows of an HBM tensor, read when a DMA runs: partition p gets row `vector_offset[p, 0]`.

        dim is 0; `vector_offset` is a (P, 1) int32 or uint32 tile in SBUF, P becomes axis 0.
        """
        from nki_kernels.simulator.access import rows_selected

        return rows_selected(self, dim, vector_offset)

    def indirect(self, index: Any, num_elem: int | None = None) -> "NkiTensor":
        """Columns of an on-chip (P, F) view, read when an instruction runs (gen4): (P, num_elem).

        `index` is a (P, K) tile of integers in SBUF. Offset i of each group of G partitions stands
        in its row i % G and column i // G; G is 16, and 32 for the tensor engine.
        """
        from nki_kernels.simulator.access import columns_selected

        return columns_selected(self, index, num_elem)

    # Access by instructions.

    def resolve(self) -> "NkiTensor":
        """The view with a scalar offset added, now that its value is known."""
        dynamic = self.dynamic
        if dynamic is None or dynamic.scalar is None:
            return self
        value = int(dynamic.scalar.read("scalar_offset").reshape(-1)[0])
        if dynamic.limit is not None and not 0 <= value < dynamic.limit:
            refuse("dma-bounds", "index", f"an index from 0 below {dynamic.limit}", value)
        offset = self.offset + value * dynamic.step
        found = NkiTensor(self.storage, self.dtype, self.shape, self.strides, offset)
        low, high = found.extent()
        if not 0 <= low <= high < self.storage.raw.size // self.itemsize:
            refuse(
                "dma-bounds",
                "scalar_offset",
                f"an address inside the {self.storage.raw.size // self.itemsize} elements",
                f"elements {low}..{high} (value {value})",
            )
        return found

    def extent(self) -> tuple[int, int]:
        """Lowest and highest element of the storage that the view reaches."""
        low = high = self.offset
        for count, stride in zip(self.shape, self.strides, strict=True):
            if stride < 0:
                low += (count - 1) * stride
            else:
                high += (count - 1) * stride
        return low, high

    def array(self) -> Array:
        """The elements as a view of the storage, undefined ones too."""
        return self.storage.window(
            self.storage.raw, self.dtype.dtype, self.offset, self.shape, self.strides
        )

    def is_defined(self) -> bool:
        """Whether every element was written."""
        return self.storage.is_defined(self.itemsize, self.offset, self.shape, self.strides)

    def read(self, argument: str = "") -> Array:
        """The elements in storage dtype; refused if some were never written."""
        if self.dynamic is not None and self.dynamic.vector is not None:
            from nki_kernels.simulator.access import read_columns

            return read_columns(self, argument)
        here = self.resolve()
        if not here.is_defined():
            refuse(
                "read-undefined",
                argument or "tensor",
                "elements that were written before",
                f"{self!r}, partly or wholly never written; initialise it (memset)",
            )
        return here.array()

    def read32(self, argument: str = "") -> Array:
        """The elements as float32: how the engines compute."""
        if self.dtype.kind == "packed":
            refuse("dtype", argument, "one element per value: nisa.nc_matmul_mx unpacks", self)
        values = self.read(argument)
        return values if values.dtype == np.float32 else values.astype(np.float32)

    def write(self, values: Array) -> None:
        """Round `values` (same number of elements) to the dtype and store them."""
        here = self.resolve()
        if self.dtype.kind == "packed" and values.dtype.kind not in "iu":
            refuse("dtype", "dst", f"{self.dtype} as it is stored: nisa.quantize_mx packs", self)
        rounded = cast(np.asarray(values), self.dtype)
        if self.picks:
            from nki_kernels.simulator.access import write_columns

            return write_columns(self, rounded)
        if rounded.shape != here.shape and rounded.size == here.size:
            rounded = rounded.reshape(here.shape)
        here.array()[...] = rounded
        here.mark_written()

    def mark_written(self) -> None:
        """The elements are defined now, and no matmul's result."""
        storage, place = self.storage, (self.itemsize, self.offset, self.shape, self.strides)
        storage.define(*place)
        if storage.accumulated is not None:
            storage.accumulation(*place)[...] = 0

    def access(self, argument: str) -> Access:
        """What the ledger keeps of this operand."""
        low, high = self.resolve().extent()
        size = self.itemsize
        if self.on_chip:
            row = self.row
            first, start = divmod(low, row)
            free = high - low - (self.shape[0] - 1) * self.strides[0]
            if self.picks:
                free = (self.dynamic.limit - 1) * self.dynamic.step
            region = (first, high // row + 1, start * size, (start + free + 1) * size)
        elif self.gathers:
            region = (0, 1, 0, self.storage.raw.size)
        else:
            region = (0, 1, low * size, (high + 1) * size)
        return Access(
            *(argument, self.storage.serial, self.buffer, self.dtype.name),
            *(size, self.shape, self.strides, region),
        )

    # What a kernel may not do with a tensor.

    def __bool__(self) -> bool:
        return bool(
            refuse("tensor-value", "", "a compile-time value", f"the truth of {self!r}", "bool")
        )

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return refuse("tensor-value", "", "nl or nisa, not numpy", repr(self), "numpy")

    def __iter__(self) -> Any:
        return refuse("tensor-value", "", "an index or a slice", f"a loop over {self!r}", "iter")

    def __setitem__(self, index: Any, value: Any) -> None:
        refuse(
            *("tensor-operator", "", "nisa.tensor_copy, nisa.dma_copy or nl.store"),
            *(f"an assignment to {self!r}", "tensor[...] ="),
        )


def _operator(symbol: str) -> Any:
    def refused(self: NkiTensor, *others: Any) -> Any:
        return refuse(
            "tensor-operator",
            "",
            "an instruction (nisa.tensor_tensor, nl.add ...)",
            repr(self),
            symbol,
        )

    return refused


for _method, _symbol in {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "truediv": "/",
    "matmul": "@",
    "pow": "**",
    "mod": "%",
    "radd": "+",
    "rsub": "-",
    "rmul": "*",
    "rtruediv": "/",
    "neg": "-",
    "abs": "abs",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "and": "&",
    "or": "|",
    "xor": "^",
    "iadd": "+=",
    "isub": "-=",
    "imul": "*=",
    "itruediv": "/=",
    "float": "float",
    "int": "int",
}.items():
    setattr(NkiTensor, f"__{_method}__", _operator(_symbol))
