"""Which instruction waits for which, beyond its data: handles, `with_schedule`, and its checks."""

from collections.abc import Iterable, Sequence
from enum import Enum, auto
from typing import Any

from nki_kernels.simulator.context import refuse
from nki_kernels.simulator.errors import text
from nki_kernels.simulator.ledger import Event


class dependency(Enum):
    """What `depends_on` and `with_schedule` ask for."""

    runtime = auto()  # the producer has ended: a semaphore
    schedule = auto()  # the producer has started: an order for the compiler, not for the device


Edge = tuple[str, tuple[str, ...], Any]  # consumer, producers, kind; by name=


class NkiInstruction:
    """What an instruction returns: a handle for the schedule."""

    def __init__(self, event: Event) -> None:
        self._event = event
        self.name = event.name

    def depends_on(self, *producers: Any, kind: Any = None) -> "NkiInstruction":
        """Run after `producers` (data dependencies are found without it); returns itself.

        `kind`: `dependency.runtime`, as without one, waits until they have ended;
        `dependency.schedule` until they have started.
        """
        _check_kind(kind, "depends_on")
        for producer in producers:
            if not isinstance(producer, NkiInstruction):
                refuse("signature", "producers", "handles of instructions", producer, "depends_on")
            add(self._event, producer._event, kind, "depends_on")
        return self


def add(consumer: Event, producer: Event, kind: Any, op: str) -> None:
    """Note that one waits for the other. Refused into a run-time loop's iteration or out of it."""
    later = producer.index >= consumer.index
    if producer.loop != consumer.loop and (producer.loop is not None or later):
        expected = "both in one iteration of a run-time loop, or the producer before the loop"
        refuse("schedule", "", expected, _pair(consumer, producer), op, consumer.line)
    if kind is dependency.schedule:
        consumer.issued_after += (producer.index,)
    else:
        consumer.after += (producer.index,)


def _check_kind(kind: Any, op: str) -> None:
    if kind is not None and not isinstance(kind, dependency):
        refuse("enum", "kind", "nisa.dependency.runtime or .schedule", repr(kind), op)


def _pair(consumer: Event, producer: Event) -> str:
    return f"{described(consumer)} after {described(producer)}"


def described(event: Event) -> str:
    """The instruction and where it stands."""
    return f"{event.op}{f' {event.name!r}' if event.name else ''} at {text(event.line)}"


def edges(pairs: Any, kind: Any) -> tuple[Edge, ...]:
    """The argument of `with_schedule`, checked."""
    _check_kind(kind, "with_schedule")
    found: list[Edge] = []
    for pair in pairs:
        if isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], str):
            producers = (pair[1],) if isinstance(pair[1], str) else pair[1]
            if isinstance(producers, Sequence) and all(isinstance(p, str) for p in producers):
                found.append((pair[0], tuple(producers), kind))
                continue
        expected = "pairs of names: (consumer, producer or a list of producers)"
        refuse("signature", "schedule", expected, repr(pair), "with_schedule")
    return tuple(found)


def apply(schedule: Iterable[Edge], events: Sequence[Event]) -> None:
    """Note the edges of `with_schedule` in a launch's events.

    A name belongs to one instruction of each core, which a run-time loop may repeat; a core that
    does not run the producer does not wait for it.
    """
    asked = {name for consumer, producers, _ in schedule for name in (consumer, *producers)}
    named: dict[str, dict[int, dict[tuple[int, int] | None, Event]]] = {}
    for event in events:
        if event.name is None:
            continue
        repeated = named.setdefault(event.name, {}).setdefault(event.core, {})
        if event.name in asked and event.loop in repeated:
            got = f"{described(repeated[event.loop])} and {described(event)}"
            refuse("schedule", "name", "one instruction of a name", got, "with_schedule")
        repeated[event.loop] = event
    for name in sorted(asked - named.keys()):
        expected = f"one of {', '.join(sorted(named)) or 'no names: give name='}"
        refuse("schedule", "name", expected, repr(name), "with_schedule")
    for consumer, producers, kind in schedule:
        for core, repeated in named[consumer].items():
            for loop, event in repeated.items():
                for name in producers:
                    others = named[name].get(core, {})
                    before = others.get(loop) or others.get(None)
                    for producer in [before] if before else list(others.values())[:1]:
                        add(event, producer, kind, "with_schedule")
