"""Who waits for whom: regions that were read or written before, marks by `depends_on`, barriers.

Tracked per storage by the regions of the ledger's accesses. Two strided views of one HBM tensor
with the same row pitch (column blocks) are told apart; other views count as the box they span.
Reduce registers need no tracking: they belong to an engine, and an engine runs in order.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from nki_kernels.simulator.hardware import Engine
from nki_kernels.simulator.ledger import Access, Event


class Kind(Enum):
    """Why an instruction waits."""

    RAW = "reads what was written"
    WAW = "writes over what was written"
    WAR = "writes over what was read"
    ORDER = "depends_on"
    ISSUE = "depends_on, order of issue only"
    SCALAR = "may take a register's value as an offset"


SCALARS = ("register_load", "register_move", "scalar_load")


@dataclass
class _Record:
    writes: list[tuple[int, Access]] = field(default_factory=list)
    reads: list[tuple[int, Access]] = field(default_factory=list)


class Tracker:
    """Feed it the events in order; it says what each one waits for."""

    def __init__(self) -> None:
        self._storages: dict[int, _Record] = {}
        self._scalars: dict[int, int] = {}  # core -> last event that set a register

    def wait_for(self, event: Event) -> set[tuple[int, Kind]]:
        """The earlier events (by index) that `event` waits for, and why; then note `event`."""
        found: set[tuple[int, Kind]] = {(index, Kind.ORDER) for index in event.after}
        found |= {(index, Kind.ISSUE) for index in event.issued_after}
        for access in event.reads:
            found |= set(_meet(access, self._record(access).writes, Kind.RAW))
        for access in event.writes:
            record = self._record(access)
            found |= set(_meet(access, record.writes, Kind.WAW))
            found |= set(_meet(access, record.reads, Kind.WAR))
        if event.engine is Engine.dma and event.core in self._scalars:
            found.add((self._scalars[event.core], Kind.SCALAR))
        self._note(event)
        asked = {*event.after, *event.issued_after}
        return {(index, kind) for index, kind in found if index != event.index or index in asked}

    def _record(self, access: Access) -> _Record:
        return self._storages.setdefault(access.storage, _Record())

    def _note(self, event: Event) -> None:
        for access in event.reads:
            self._record(access).reads.append((event.index, access))
        for access in event.writes:
            record = self._record(access)
            if fills_its_box(access):  # whoever meets the older ones meets this one
                record.writes = [old for old in record.writes if not inside(old[1], access)]
                record.reads = [
                    old
                    for old in record.reads
                    if old[0] == event.index or not inside(old[1], access)
                ]
            record.writes.append((event.index, access))
        if event.op in SCALARS:
            self._scalars[event.core] = event.index


def _meet(
    access: Access, earlier: list[tuple[int, Access]], kind: Kind
) -> Iterator[tuple[int, Kind]]:
    return ((index, kind) for index, other in earlier if overlap(access, other))


def overlap(one: Access, other: Access) -> bool:
    """Whether two accesses of one storage may share a byte."""
    first, end, low, high = one.region
    first_, end_, low_, high_ = other.region
    if first >= end_ or first_ >= end or low >= high_ or low_ >= high:
        return False
    if one.buffer.on_chip or other.buffer.on_chip:
        return True
    mine, theirs = _block(one), _block(other)
    if mine is None or theirs is None or mine[0] != theirs[0]:
        return True
    _, row, rows, column, width = mine
    _, row_, rows_, column_, width_ = theirs
    return (
        row < row_ + rows_
        and row_ < row + rows
        and column < column_ + width_
        and column_ < column + width
    )


def _block(access: Access) -> tuple[int, int, int, int, int] | None:
    """An HBM view as rows of one pitch: (pitch, first row, rows, first column, width) in bytes."""
    dims = [(n, s) for n, s in zip(access.shape, access.strides, strict=True) if n > 1]
    if not dims or min(stride for _, stride in dims) < 0:
        return None
    (rows, stride) = max(dims, key=lambda dim: dim[1])
    pitch, low, high = stride * access.itemsize, access.region[2], access.region[3]
    if pitch == 0:
        return None
    row, column = divmod(low, pitch)
    width = high - low - (rows - 1) * pitch
    return (pitch, row, rows, column, width) if 0 < width <= pitch - column else None


def fills_its_box(access: Access) -> bool:
    """Whether every byte of the region is touched."""
    first, end, low, high = access.region
    distinct = 1
    for extent, stride in zip(access.shape, access.strides, strict=True):
        distinct *= extent if stride else 1
    return distinct * access.itemsize == (end - first) * (high - low)


def inside(small: Access, large: Access) -> bool:
    """Whether the box of one lies in the other's."""
    first, end, low, high = large.region
    first_, end_, low_, high_ = small.region
    return first <= first_ and end_ <= end and low <= low_ and high_ <= high
