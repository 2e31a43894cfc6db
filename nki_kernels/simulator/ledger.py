"""What was executed: one event per instruction, and the tiles that were alive.

The seam for costs and pictures: an event carries engine, shapes, dtypes, strides and the regions
that were read and written; nothing here knows a cycle. Capacity is checked over live ranges.
"""

from dataclasses import dataclass, field
from typing import Any

from nki_kernels.simulator.errors import Line
from nki_kernels.simulator.hardware import Engine
from nki_kernels.simulator.memory import Buffer, Storage


@dataclass(frozen=True, slots=True)
class Access:
    """One operand of one instruction.

    `region`: (first partition, end, first byte, end) within the storage; for HBM one partition.
    """

    argument: str
    storage: int  # serial number
    buffer: Buffer
    dtype: str
    itemsize: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    region: tuple[int, int, int, int]

    @property
    def elements(self) -> int:
        """Number of elements."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count

    @property
    def free(self) -> int:
        """Elements per partition."""
        return self.elements // max(self.shape[0], 1) if self.shape else 1


@dataclass(slots=True)
class Event:
    """One executed instruction. `attributes`: its arguments that are no tensors."""

    index: int
    core: int
    op: str
    engine: Engine
    name: str | None
    line: Line
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]
    attributes: dict[str, Any]
    loop: tuple[int, int] | None = None  # run-time loop of its core, iteration
    after: tuple[int, ...] = ()  # `depends_on`: runs when they have ended
    issued_after: tuple[int, ...] = ()  # `depends_on(kind=dependency.schedule)`: when they started

    @property
    def free(self) -> int:
        """Elements per partition of the largest operand."""
        return max((access.free for access in self.reads + self.writes), default=0)

    @property
    def bytes(self) -> int:
        """Bytes written: what a DMA moves."""
        return sum(access.elements * access.itemsize for access in self.writes)


@dataclass(slots=True)
class Allocation:
    """A tile on the chip and the events (index of first and last) that touched it."""

    serial: int
    core: int
    name: str
    buffer: Buffer
    row_bytes: int
    line: Line
    first: int = -1
    last: int = -1


@dataclass
class Ledger:
    """Events and allocations of a session, in program order."""

    events: list[Event] = field(default_factory=list)
    allocations: dict[int, Allocation] = field(default_factory=dict)
    launches: list[tuple[int, int]] = field(default_factory=list)  # (first event, cores)

    def launch(self, cores: int) -> None:
        """A kernel starts: what follows waits for what came before."""
        self.launches.append((len(self.events), cores))

    def allocate(self, storage: Storage, core: int) -> None:
        """Note a tile on the chip."""
        self.allocations[storage.serial] = Allocation(
            *(storage.serial, core, storage.name),
            *(storage.buffer, storage.row_bytes, storage.line),
        )

    def record(self, event: Event) -> None:
        """Note an instruction and the tiles that it keeps alive."""
        self.events.append(event)
        for access in event.reads + event.writes:
            tile = self.allocations.get(access.storage)
            if tile is not None:
                tile.first = event.index if tile.first < 0 else tile.first
                tile.last = event.index

    def peak(self, buffer: Buffer, core: int = 0) -> tuple[int, list[Allocation]]:
        """Most bytes per partition alive at once, and the tiles of that moment.

        A tile lives from the first to the last instruction that touches it, as a compiler would
        place it, and takes its row on all 128 partitions: tiles start at partition 0. PSUM tiles
        of more than half a bank take whole banks.
        """
        tiles = [
            tile
            for tile in self.allocations.values()
            if tile.buffer is buffer and tile.core == core and tile.first >= 0
        ]
        steps = [(tile.first, 0, tile) for tile in tiles] + [(tile.last, 1, tile) for tile in tiles]
        live: dict[int, Allocation] = {}
        now = most = 0
        at_peak: list[Allocation] = []
        for _, ends, tile in sorted(steps, key=lambda step: step[:2]):
            if ends:
                del live[tile.serial]
                now -= footprint(tile)
            else:
                live[tile.serial] = tile
                now += footprint(tile)
                if now > most:
                    most, at_peak = now, list(live.values())
        return most, at_peak


def footprint(tile: Allocation) -> int:
    """Bytes per partition; PSUM in whole banks where two tiles cannot share one."""
    bank = 2048
    if tile.buffer is Buffer.psum and tile.row_bytes > bank // 2:
        return -(-tile.row_bytes // bank) * bank
    return tile.row_bytes
