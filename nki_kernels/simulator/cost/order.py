"""In which order instructions are placed: the program's, but a consumer after its producers.

Data flows forward in a program; only `depends_on` and `with_schedule` can ask an instruction to
wait for a later one.
"""

from collections.abc import Iterator, Sequence

from nki_kernels.simulator.context import refuse
from nki_kernels.simulator.cost.dependencies import Kind, Tracker
from nki_kernels.simulator.handles import described
from nki_kernels.simulator.ledger import Event

Waits = set[tuple[int, Kind]]


class Order:
    """Feed it the events of a program; it gives each one, and what it waits for, in its turn."""

    def __init__(self) -> None:
        self.tracker = Tracker()
        self.given: set[int] = set()
        self.held: dict[int, tuple[Event, Waits]] = {}

    def feed(self, event: Event) -> Iterator[tuple[Event, Waits]]:
        """The event, if nothing that it waits for is still to come, and those held back for it."""
        self.held[event.index] = event, self.tracker.wait_for(event)
        while True:
            ready = (i for i, (_, waits) in self.held.items() if self._all_given(waits))
            index = next(ready, None)
            if index is None:
                return
            self.given.add(index)
            yield self.held.pop(index)

    def _all_given(self, waits: Waits) -> bool:
        return all(index in self.given for index, _ in waits)


def check_order(events: Sequence[Event]) -> None:
    """Refuse a launch in which instructions wait for each other in a circle, or for one behind
    a barrier."""
    forward = {
        event.index: max(later)
        for event in events
        if (later := [i for i in (*event.after, *event.issued_after) if i >= event.index])
    }
    if not forward:
        return
    order = Order()
    for event in events:
        for _ in order.feed(event):
            pass
        if event.op in ("core_barrier", "sendrecv") and order.held:
            break
    if order.held:
        waiting = [event for event, _ in order.held.values()]
        at = next(event for event in waiting if event.index in forward)
        refuse(
            *("schedule", "", "instructions that do not wait for each other in a circle"),
            *(" <- ".join(map(described, waiting)), "depends_on", at.line),
        )
