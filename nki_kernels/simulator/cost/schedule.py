"""When each instruction runs: a list schedule over engines, DMA queues and shared ports.

Each engine runs its instructions in program order, as its queue does on the device; engines run
beside each other and wait only for data. DMAs start when their data is there, in any order: there
are 16 queues. What is read after it was written comes DEPENDENT cycles later (a DMA's: its
latency). `depends_on` and `with_schedule` are obeyed; iterations of a run-time loop do not overlap,
as the compiler ends each with a barrier. Tiles are not renamed and buffers not limited: prefetching
is as free as the kernel's own allocations allow.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from nki_kernels.simulator.cost.constants import VALUE
from nki_kernels.simulator.cost.cycles import cycles
from nki_kernels.simulator.cost.dependencies import Kind
from nki_kernels.simulator.cost.dma import Transfer, transfer
from nki_kernels.simulator.cost.order import Order, Waits
from nki_kernels.simulator.hardware import Engine, Generation
from nki_kernels.simulator.ledger import Event
from nki_kernels.simulator.memory import Buffer

Resource = tuple[int, str]  # core, name
CORES = (0, 1)  # of a launch
MEETINGS = ("core_barrier", "sendrecv")


@dataclass(frozen=True, slots=True)
class Step:
    """One scheduled instruction; times in seconds. The result can be used at `done`."""

    event: Event
    start: float
    end: float
    done: float
    cycles: float
    transfer: Transfer | None


@dataclass
class Schedule:
    """The steps in the ledger's order, and the bounds that no schedule can beat."""

    steps: list[Step]
    busy: dict[Resource, float]  # seconds per engine or shared port
    critical_path: float  # the longest chain of dependencies

    @property
    def length(self) -> float:
        """Seconds from the first start to the last result."""
        return max((step.done for step in self.steps), default=0.0)

    @property
    def lower_bound(self) -> float:
        """The busiest engine, DMA or port: with everything else hidden behind it."""
        return max(self.busy.values(), default=0.0)


@dataclass
class Timeline:
    """The occupied intervals of one resource."""

    starts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    def fit(self, ready: float, length: float) -> float:
        """Earliest start from `ready` on."""
        at = ready
        for index in range(bisect_right(self.ends, ready), len(self.starts)):
            if self.starts[index] - at >= length:
                break
            at = max(at, self.ends[index])
        return at

    def book(self, start: float, length: float) -> None:
        """Occupy; intervals that touch are merged."""
        if length <= 0:
            return
        end, place = start + length, bisect_right(self.starts, start)
        if place and start - self.ends[place - 1] < 1e-15:
            place -= 1
            self.ends[place] = end
        else:
            self.starts.insert(place, start)
            self.ends.insert(place, end)
        if place + 1 < len(self.starts) and self.starts[place + 1] - end < 1e-15:
            self.ends[place] = self.ends.pop(place + 1)
            del self.starts[place + 1]


@dataclass(frozen=True)
class _Work:
    busy: float
    latency: float
    cycles: float
    transfer: Transfer | None


def work(event: Event, generation: Generation) -> _Work:
    """Seconds that the instruction occupies its engine, and seconds more until its result."""
    if event.engine is Engine.dma:
        moved = transfer(event, generation)
        return _Work(moved.busy, moved.latency, 0.0, moved)
    if event.engine is Engine.sync:
        meets = event.op in MEETINGS
        return _Work(VALUE["REGISTER"], VALUE["SEMAPHORE"] if meets else 0.0, 0.0, None)
    clock, count = generation.clock[event.engine], cycles(event, generation)
    return _Work(count / clock, VALUE["DEPENDENT"] / clock, count, None)


def resources(event: Event, generation: Generation) -> list[Resource]:
    """What the instruction occupies: its engine and, on gen2, ports that engines share."""
    found = [(event.core, event.engine.name)]
    if generation.number > 2 or event.engine in (Engine.dma, Engine.sync, Engine.tensor):
        return found
    buffers = {access.buffer for access in event.reads + event.writes}
    if event.engine in (Engine.vector, Engine.gpsimd) and Buffer.sbuf in buffers:
        found.append((event.core, "SBUF port of vector and gpsimd"))
    if event.engine in (Engine.vector, Engine.scalar) and Buffer.psum in buffers:
        found.append((event.core, "PSUM port of vector and scalar"))
    return found


class _Scheduler:
    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.order = Order()
        self.lines: dict[Resource, Timeline] = {}
        self.ordered: dict[Resource, float] = {}  # when an engine has issued its last
        self.busy: dict[Resource, float] = {}
        self.steps: dict[int, Step] = {}
        self.chains: dict[int, tuple[float, float]] = {}  # end and result of the longest chain
        # Per core, in the schedule and with engines without limit: before which nothing starts,
        # and the last result.
        self.floor: dict[int, tuple[float, float]] = {}
        self.latest: dict[int, tuple[float, float]] = {}
        self.loops: dict[int, tuple[int, int] | None] = {}  # per core, where its last event stands

    def launch(self) -> None:
        """A new launch starts when everything before it has ended."""
        self.floor = dict.fromkeys(CORES, self.last(CORES))

    def last(self, cores: Iterable[int]) -> tuple[float, float]:
        """The last result of the cores."""
        found = [self.latest.get(core, (0.0, 0.0)) for core in cores]
        return max(at for at, _ in found), max(chain for _, chain in found)

    def iterate(self, event: Event) -> None:
        """An iteration of a run-time loop ends with a barrier of all the core's engines."""
        before = self.loops.get(event.core)
        if before is not None and before != event.loop:
            self.floor[event.core] = self.last([event.core])
        self.loops[event.core] = event.loop

    def ready(self, event: Event, waits: Waits) -> tuple[float, float]:
        """When its data is there: in the schedule, and with engines without limit."""
        at, chain = self.floor.get(event.core, (0.0, 0.0))
        for index, kind in waits:
            producer = self.steps[index]
            if kind is Kind.ISSUE:
                at = max(at, producer.start)
                chain = max(chain, self.chains[index][0] - (producer.end - producer.start))
                continue
            same = producer.event.engine is event.engine is not Engine.dma
            early = kind is Kind.WAR or (kind is Kind.WAW and same)
            end, done = self.chains[index]
            at = max(at, producer.end if early else producer.done)
            chain = max(chain, end if early else done)
        return at, chain

    def place(self, event: Event, at: float, chain: float) -> None:
        """Put it on its engine (and ports) at the earliest time from `at` on."""
        cost, where = work(event, self.generation), resources(event, self.generation)
        if event.engine is not Engine.dma:
            at = max(at, self.ordered.get(where[0], 0.0))
        start = at
        while True:
            found = max(self.lines.setdefault(w, Timeline()).fit(start, cost.busy) for w in where)
            if found == start:
                break
            start = found
        end = start + cost.busy
        for resource in where:
            self.lines[resource].book(start, cost.busy)
            self.busy[resource] = self.busy.get(resource, 0.0) + cost.busy
        self.ordered[where[0]] = max(self.ordered.get(where[0], 0.0), end)
        self.steps[event.index] = Step(
            *(event, start, end, end + cost.latency), *(cost.cycles, cost.transfer)
        )
        self.chains[event.index] = (chain + cost.busy, chain + cost.busy + cost.latency)
        at, longest = self.latest.get(event.core, (0.0, 0.0))
        done, chain = self.steps[event.index].done, self.chains[event.index][1]
        self.latest[event.core] = max(at, done), max(longest, chain)

    def meet(self, events: Sequence[Event]) -> None:
        """Cores that wait for each other: all start when the last one could."""
        ready = [self.ready(*pair) for event in events for pair in self.order.feed(event)]
        at, chain = max(r[0] for r in ready), max(r[1] for r in ready)
        cores = {event.core for event in events}
        barrier = events[0].op == "core_barrier"
        if barrier:
            before = self.last(cores)
            at, chain = max(at, before[0]), max(chain, before[1])
        for event in events:
            self.place(event, at, chain)
        if barrier:
            self.floor |= dict.fromkeys(cores, self.last(cores))


def schedule(
    events: Sequence[Event], generation: Generation, launches: Iterable[int] = (0,)
) -> Schedule:
    """Place every event. `launches`: index of the first event of each launch."""
    run, starts = _Scheduler(generation), set(launches) - {0}
    meetings = _meetings(events)
    for event in events:
        if event.index in starts:
            run.launch()
        if event.index in run.steps:
            continue
        run.iterate(event)
        if event.op in MEETINGS:
            run.meet(meetings[event.index])
            continue
        for one, waits in run.order.feed(event):
            run.place(one, *run.ready(one, waits))
    steps = [run.steps[event.index] for event in events]
    return Schedule(steps, run.busy, run.last(CORES)[1])


def _meetings(events: Sequence[Event]) -> dict[int, list[Event]]:
    """The events of all cores that belong to the same meeting: the n-th of each core."""
    counts: dict[tuple[str, int], int] = {}
    groups: dict[tuple[str, int], list[Event]] = {}
    found: dict[int, list[Event]] = {}
    for event in events:
        if event.op in MEETINGS:
            number = counts[event.op, event.core] = counts.get((event.op, event.core), 0) + 1
            group = groups.setdefault((event.op, number), [])
            group.append(event)
            found[event.index] = group
    return found
