"""Tile grids (NKI 0.7): tensors navigated in coordinates of tiles, or of blocks of tiles.

A grid is a view: making or indexing one moves nothing. Boundary tiles are clamped to the tensor.
Tiles that `alloc_tiles` makes on the chip lie side by side in the free dimension, in row-major
order of their coordinates, so that more rows than partitions fit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

from nki_kernels.simulator.context import current, refuse
from nki_kernels.simulator.dtypes import Dtype
from nki_kernels.simulator.errors import NkiTypeError
from nki_kernels.simulator.language.creation import ndarray
from nki_kernels.simulator.memory import Buffer
from nki_kernels.simulator.tensor import NkiTensor
from nki_kernels.simulator.views import index_range


@dataclass(frozen=True)
class _Axis:
    """One axis of the source. `tile`: elements per tile; `block`: tiles per cell of the grid."""

    extent: int
    tile: int
    cells: range  # those selected
    block: int = 1
    tiled: bool = True
    consumed: bool = False  # by an int

    @property
    def cell(self) -> int:
        """Elements of a whole cell."""
        return self.tile * self.block

    @property
    def start(self) -> int:
        """The first element."""
        return self.cells[0] * self.cell

    @property
    def missing(self) -> int:
        """Elements that the last cell lacks, at the boundary."""
        return max(0, (self.cells[-1] + 1) * self.cell - self.extent)

    @property
    def elements(self) -> int:
        """Elements selected."""
        return len(self.cells) * self.cell - self.missing

    @property
    def dense(self) -> bool:
        """Whether the elements selected have one stride."""
        return len(self.cells) == 1 or self.cells.step == 1 or self.cell == 1

    @property
    def tiles(self) -> range:
        """The tiles selected; refused if they have no single stride."""
        if not self.dense:
            refuse("view", "source", "a grid without gaps between its blocks", self.cells, "tiles")
        if self.block == 1:
            return self.cells
        first = self.cells[0] * self.block
        return range(first, first - (-self.elements // self.tile))


class NkiGrid:
    """A tensor region in coordinates; made by `nl.tiles`, `nl.blocks` and their allocations.

    `grid[i, 0:2]` keeps the kind of grid; an int consumes its coordinate. `data` is the tensor for
    an instruction.
    """

    __iter__ = None

    def __init__(self, source: NkiTensor, axes: Sequence[_Axis], *, packed: bool = False) -> None:
        self._source, self._axes, self._packed = source, tuple(axes), packed

    def __repr__(self) -> str:
        kind = type(self).__name__
        return f"{kind} {list(self.shape)} of {self._source!r}: an instruction takes its .data"

    @property
    def buffer(self) -> Buffer:
        """Where the tensor lies."""
        return self._source.buffer

    @property
    def dtype(self) -> Dtype:
        """The dtype of its elements."""
        return self._source.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Cells along each coordinate that no int has consumed."""
        return tuple(len(axis.cells) for axis in self._axes if not axis.consumed)

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """Elements of a whole tile."""
        return tuple(axis.tile for axis in self._axes if axis.tiled)

    @property
    def element_shape(self) -> tuple[int, ...]:
        """Elements selected along each axis of the tensor; untiled ones that are consumed left
        out."""
        kept = [axis for axis in self._axes if axis.tiled or not axis.consumed]
        return tuple(axis.elements for axis in kept)

    @property
    def index_step_elements(self) -> tuple[int, ...]:
        """Elements from one cell to the next along each coordinate."""
        return tuple(axis.cells.step * axis.cell for axis in self._axes if not axis.consumed)

    @property
    def is_remainder(self) -> bool:
        """Whether a selected cell is cut off by the tensor's boundary."""
        return any(axis.missing > 0 for axis in self._axes)

    @property
    def is_data_representable(self) -> bool:
        """Whether `data` can give the selection as one tensor."""
        if not self._packed:
            steps = [axis.dense for axis in self._axes]
            return all(steps) and (not self._source.on_chip or self._axes[0].cells.step == 1)
        rows, *free = [axis for axis in self._axes if axis.tiled]
        single = [axis.elements <= axis.tile for axis in (rows, *free)]
        slabs = all(axis.consumed for axis in self._axes if not axis.tiled)
        beside = len(free) == 1 and (len(free[0].cells) == 1 or free[0].cells.step == 1)
        return slabs and single[0] and (beside or all(single))

    @property
    def data(self) -> NkiTensor:
        """The whole selection as one tensor of `element_shape`; refused if it is not one."""
        if not self.is_data_representable:
            expected = "a selection that is one tensor: index it down to a tile or a row of tiles"
            refuse("view", "", expected, self, "data")
        if self._packed:
            return self._packed_data()
        index = tuple(
            axis.cells[0]
            if axis.consumed and not axis.tiled
            else slice(axis.start, axis.start + axis.elements)
            if axis.cells.step == 1 or len(axis.cells) == 1
            else slice(axis.cells[0], axis.cells[-1] + 1, axis.cells.step)
            for axis in self._axes
        )
        return self._source[index]

    def _packed_data(self) -> NkiTensor:
        number = 0
        for axis in self._axes:
            number = number * -(-axis.extent // axis.tile) + axis.start // axis.tile
        _, *free = self.tile_shape
        inner = [math.prod(free[place + 1 :]) for place in range(len(free))]
        strides = [self._source.strides[0], *inner]
        offset = self._source.offset + number * math.prod(free)
        return self._source.with_view(self.element_shape, strides, offset)

    def __getitem__(self, index: Any) -> Self:
        items = list(index) if isinstance(index, tuple) else [index]
        left = [place for place, axis in enumerate(self._axes) if not axis.consumed]
        if len(items) - items.count(Ellipsis) > len(left) or items.count(Ellipsis) > 1:
            refuse("index-bounds", "index", f"at most {len(left)} coordinates", index, "grid[...]")
        if Ellipsis not in items:
            items.append(Ellipsis)
        at = items.index(Ellipsis)
        items[at : at + 1] = [slice(None)] * (len(left) - len(items) + 1)
        axes = list(self._axes)
        for place, item in zip(left, items, strict=True):
            cells = axes[place].cells
            start, count, step = index_range(item, len(cells), place)
            chosen = cells[start : start + (count - 1) * step + 1 : step]
            axes[place] = replace(axes[place], cells=chosen, consumed=not isinstance(item, slice))
        return type(self)(self._source, axes, packed=self._packed)


Grid = TypeVar("Grid", bound=NkiGrid)


class NkiTileGrid(NkiGrid):
    """A grid of tiles."""


class NkiBlockGrid(NkiGrid):
    """A grid of blocks of tiles."""

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Tiles of a whole block."""
        return tuple(axis.block for axis in self._axes if axis.tiled)


def tiles(source: NkiTensor | NkiGrid, *, tile_shape: tuple[int, ...] | None = None) -> NkiTileGrid:
    """A tensor, or the selection of a grid, in coordinates of tiles.

    `tile_shape` applies to the last axes; those before it, in HBM only, are indexed one by one.
    Without it a grid keeps its tiles.
    """
    return _grid(NkiTileGrid, source, tile_shape, None, "tiles")


def blocks(
    source: NkiTensor | NkiGrid,
    *,
    tile_shape: tuple[int, ...] | None = None,
    block_shape: tuple[int, ...],
) -> NkiBlockGrid:
    """As `tiles`, in coordinates of blocks of `block_shape` tiles."""
    return _grid(NkiBlockGrid, source, tile_shape, block_shape, "blocks")


def alloc_tiles(
    *,
    tile_shape: tuple[int, ...],
    element_shape: tuple[int, ...],
    buffer: Buffer,
    dtype: Any,
    address: tuple[int, int] | None = None,
    name: str = "",
) -> NkiTileGrid:
    """An uninitialised tensor of `element_shape`, in coordinates of tiles."""
    place = (buffer, dtype, address, name)
    return _allocated(NkiTileGrid, tile_shape, element_shape, place, "alloc_tiles")


def alloc_blocks(
    *,
    tile_shape: tuple[int, ...],
    block_shape: tuple[int, ...],
    element_shape: tuple[int, ...],
    buffer: Buffer,
    dtype: Any,
    address: tuple[int, int] | None = None,
    name: str = "",
) -> NkiBlockGrid:
    """An uninitialised tensor of `element_shape`, in coordinates of blocks of tiles."""
    place = (buffer, dtype, address, name)
    whole = _allocated(NkiTileGrid, tile_shape, element_shape, place, "alloc_blocks")
    return _grid(NkiBlockGrid, whole, None, block_shape, "alloc_blocks")


def _shape(value: Any, argument: str, op: str, rank: int | None = None) -> tuple[int, ...]:
    """A tuple of positive ints, of at least two, or of `rank`."""
    if not isinstance(value, tuple) or not all(type(extent) is int for extent in value):
        refuse("shape", argument, "a tuple of ints", repr(value), op, kind=NkiTypeError)
    if any(extent < 1 for extent in value):
        refuse("shape", argument, "extents above 0", value, op)
    if len(value) < 2 or (rank is not None and len(value) != rank):
        refuse("shape", argument, f"{rank or 'two or more'} extents", value, op)
    return value  # type: ignore[no-any-return]


def _axes(elements: tuple[int, ...], tile: tuple[int, ...], op: str) -> list[_Axis]:
    untiled = len(elements) - len(tile)
    if untiled < 0:
        refuse("shape", "tile_shape", f"at most {len(elements)} extents", tile, op)
    extents = (1,) * untiled + tile
    return [
        _Axis(extent, step, range(-(-extent // step)), tiled=place >= untiled)
        for place, (extent, step) in enumerate(zip(elements, extents, strict=True))
    ]


def _grid(kind: type[Grid], source: Any, tile_shape: Any, block_shape: Any, op: str) -> Grid:
    _since_0_7(op)
    packed = False
    if isinstance(source, NkiGrid) and tile_shape is None:
        tensor, packed = source._source, source._packed
        axes = [
            replace(axis, cells=axis.tiles, block=1, consumed=axis.consumed and not axis.tiled)
            for axis in source._axes
        ]
    else:
        tensor = source.data if isinstance(source, NkiGrid) else source
        if not isinstance(tensor, NkiTensor):
            refuse("signature", "source", "a tensor or a grid", repr(source), op, kind=NkiTypeError)
        axes = _axes(tensor.shape, _shape(tile_shape, "tile_shape", op), op)
        if tensor.on_chip and not axes[0].tiled:
            refuse("shape", "tile_shape", f"{tensor.ndim} extents on the chip", tile_shape, op)
    if block_shape is not None:
        axes = _blocked(axes, block_shape, op)
    return kind(tensor, axes, packed=packed)


def _blocked(axes: list[_Axis], block_shape: Any, op: str) -> list[_Axis]:
    """The axes with their tiles grouped; refused where the tiles do not begin with a block."""
    untiled = [axis for axis in axes if not axis.tiled]
    tiled = axes[len(untiled) :]
    found = []
    for axis, block in zip(tiled, _shape(block_shape, "block_shape", op, len(tiled)), strict=True):
        first, count = axis.cells[0], len(axis.cells)
        last = axis.cells[-1] + 1 == -(-axis.extent // axis.tile)
        if axis.cells.step != 1 or first % block or (count % block and not last):
            refuse("view", "source", f"tiles in whole blocks of {block}", axis.cells, op)
        cells = range(first // block, -(-(first + count) // block))
        found.append(replace(axis, cells=cells, block=block))
    return [*untiled, *found]


def _allocated(
    kind: type[NkiTileGrid], tile: Any, elements: Any, place: Any, op: str
) -> NkiTileGrid:
    _since_0_7(op)
    buffer, dtype, address, name = place
    axes = _axes(_shape(elements, "element_shape", op), _shape(tile, "tile_shape", op), op)
    if not isinstance(buffer, Buffer):
        refuse("enum", "buffer", "nl.sbuf, nl.psum, nl.hbm ...", repr(buffer), op)
    if not buffer.on_chip:
        return kind(ndarray(elements, dtype, buffer, name, address), axes)
    columns = math.prod(len(axis.cells) for axis in axes) * math.prod(tile[1:])
    return kind(ndarray((tile[0], columns), dtype, buffer, name, address), axes, packed=True)


def _since_0_7(op: str) -> None:
    if current().nki < "0.7":
        refuse("nki-version", "", "NKI 0.7 or newer; slices before", f"NKI {current().nki}", op)
