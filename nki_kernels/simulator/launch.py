"""Cores in lock step: each runs in a thread, one at a time, until it waits for the others.

The order is always core 0, core 1 between two barriers, so that a run is repeatable.
"""

import contextvars
import threading
from collections.abc import Callable, Sequence
from typing import Any

from nki_kernels.simulator.context import refuse
from nki_kernels.simulator.errors import Line, kernel_line


class _Abandoned(BaseException):
    """Unwinds a waiting core when another has failed."""


class Lane:
    """The thread of one core."""

    def __init__(self, body: Callable[["Lane"], Any]) -> None:
        self._go, self._rest = threading.Semaphore(0), threading.Semaphore(0)
        self.finished = self._abandoned = False
        self.error: BaseException | None = None
        self.result: Any = None
        self.line: Line | None = None  # where it waits
        run = contextvars.copy_context().run
        self.thread = threading.Thread(target=run, args=(self._run, body), daemon=True)
        self.thread.start()

    def _run(self, body: Callable[["Lane"], Any]) -> None:
        self._go.acquire()
        try:
            if not self._abandoned:
                self.result = body(self)
        except BaseException as error:  # handed to the launching thread
            self.error = error
        self.finished = True
        self._rest.release()

    def step(self) -> None:
        """Run until the core waits or ends."""
        self._go.release()
        self._rest.acquire()

    def wait(self) -> None:
        """Called by the core: let the others come to their barrier."""
        self.line = kernel_line()
        self._rest.release()
        self._go.acquire()
        if self._abandoned:
            raise _Abandoned

    def abandon(self) -> None:
        """End a core that waits."""
        self._abandoned = True
        if not self.finished:
            self.step()
        self.thread.join()


def lockstep(bodies: Sequence[Callable[[Lane], Any]], line: Line) -> list[Any]:
    """Run the cores; their results. The first error of any core is raised."""
    lanes = [Lane(body) for body in bodies]
    try:
        while not all(lane.finished for lane in lanes):
            for lane in lanes:
                lane.step()
                if lane.error is not None:
                    raise lane.error
            ended = [index for index, lane in enumerate(lanes) if lane.finished]
            if 0 < len(ended) < len(lanes):
                expected = "every core to reach the same barriers"
                got = f"core {ended[0]} ended while another waits"
                waits = next(lane.line for lane in lanes if not lane.finished)
                refuse("core-barrier", "", expected, got, line=waits or line)
        return [lane.result for lane in lanes]
    finally:
        for lane in lanes:
            lane.abandon()
