"""Buffers and storage: bytes, which of them are defined, and who has touched them.

A `Storage` is one allocation. On-chip it is `partitions` rows of `row_bytes`; in HBM one row.
Definedness is kept per byte and dropped (None) once all of it is written, so that the check costs
nothing where whole tiles are written.
"""

import itertools
from enum import Enum
from typing import Any

import numpy as np

from nki_kernels.simulator.dtypes import Array, Dtype
from nki_kernels.simulator.errors import Line


class Buffer(Enum):
    """Where a tensor lies (`nl.sbuf`, `nl.psum`, `nl.hbm`, `nl.shared_hbm`, `nl.private_hbm`)."""

    sbuf = "sbuf"
    psum = "psum"
    hbm = "hbm"
    shared_hbm = "shared_hbm"
    private_hbm = "private_hbm"

    @property
    def on_chip(self) -> bool:
        """Whether axis 0 is the partition axis."""
        return self in (Buffer.sbuf, Buffer.psum)

    def __repr__(self) -> str:
        return self.value


_serial = itertools.count()
_UINT = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_FULL = {size: kind(int("01" * size, 16)) for size, kind in _UINT.items()}
INTEGER_FILL = 4  # what the vendor's simulator puts into integers that nobody wrote; floats: NaN


class Storage:
    """One allocation. `raw`: its bytes; `live`: first and last event that touched it."""

    def __init__(
        self, buffer: Buffer, partitions: int, raw: Array, *, name: str, line: Line, defined: bool
    ) -> None:
        self.serial = next(_serial)
        self.buffer, self.partitions, self.raw, self.name, self.line = (
            *(buffer, partitions, raw),
            *(name, line),
        )
        self.row_bytes = raw.size // partitions
        self.defined: Array | None = None if defined else np.zeros(raw.size, np.uint8)
        self.accumulated: Array | None = None  # PSUM: bytes that a matmul wrote
        self.is_input = self.mutable = False
        self.loop: int | None = None  # the run-time loop in whose body it was made

    @classmethod
    def empty(
        cls, buffer: Buffer, partitions: int, row: int, dtype: Dtype, name: str, line: Line
    ) -> "Storage":
        """Undefined storage of `row` elements per partition: NaN, or 4 for integers."""
        fill = np.nan if dtype.is_float else dtype.kind != "bool" and INTEGER_FILL
        raw = np.full(partitions * row, fill, dtype.dtype).view(np.uint8)
        return cls(buffer, partitions, raw, name=name, line=line, defined=False)

    @classmethod
    def of_array(cls, array: Array, buffer: Buffer, name: str, line: Line) -> "Storage":
        """HBM storage over a contiguous array: a write changes the array."""
        raw = array.reshape(-1).view(np.uint8)
        return cls(buffer, 1, raw, name=name, line=line, defined=True)

    def window(
        self, of: Array, kind: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> Array:
        """`of` (raw, defined or accumulated) as a strided view; strides in elements of `kind`."""
        size = np.dtype(kind).itemsize
        return np.ndarray(
            shape, kind, buffer=of, offset=offset * size, strides=[size * s for s in strides]
        )

    def is_defined(self, size: int, offset: int, shape: Any, strides: Any) -> bool:
        """Whether all bytes of the view's elements (of `size` bytes) were written."""
        if self.defined is None:
            return True
        window = self.window(self.defined, _UINT[size], offset, shape, strides)
        return bool((window == _FULL[size]).all())

    def define(self, size: int, offset: int, shape: Any, strides: Any) -> None:
        """Mark the view's bytes as written."""
        if self.defined is None:
            return
        if covers(shape, strides, self.raw.size // size):
            self.defined = None
        else:
            self.window(self.defined, _UINT[size], offset, shape, strides)[...] = _FULL[size]

    def accumulation(self, size: int, offset: int, shape: Any, strides: Any) -> Array:
        """A writable view, non-zero where a matmul wrote the element."""
        if self.accumulated is None:
            self.accumulated = np.zeros(self.raw.size, np.uint8)
        return self.window(self.accumulated, _UINT[size], offset, shape, strides)


def covers(shape: tuple[int, ...], strides: tuple[int, ...], elements: int) -> bool:
    """Whether a view is dense and has all of its storage's elements."""
    count = 1
    for stride, extent in sorted(zip(strides, shape, strict=True)):
        if extent == 1:
            continue
        if stride != count:
            return False
        count *= extent
    return count == elements
