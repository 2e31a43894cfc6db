"""Kernels: `nki.jit`, launch grids, and what is checked at the end of a run."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nki_kernels.simulator import context, lint, vendor
from nki_kernels.simulator.context import Core, Session, refuse
from nki_kernels.simulator.cost.order import check_order
from nki_kernels.simulator.dtypes import Array
from nki_kernels.simulator.errors import entry, kernel_line, text, without_simulator_frames
from nki_kernels.simulator.exchange import Exchange
from nki_kernels.simulator.handles import Edge, apply, edges
from nki_kernels.simulator.hardware import PSUM_BANK_BYTES, PSUM_BANKS
from nki_kernels.simulator.launch import Lane, lockstep
from nki_kernels.simulator.ledger import Event, footprint
from nki_kernels.simulator.lint.sources import plain
from nki_kernels.simulator.memory import Buffer

OPTIONS = {"compile_config", "specialization_config"}  # of 0.7
OPTIONS |= {"debug_kernel", "experimental_flags", "mode", "platform_target", "show_compiler_tb"}


class Kernel:
    """A function under `nki.jit`. Called with arrays it runs and returns arrays, of torch where an
    argument is a torch tensor, else of numpy.

    `kernel[2](...)` runs it on two cores that share HBM inputs and `shared_hbm` outputs.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        grid: tuple[int, ...] = (),
        options: Mapping[str, Any] | None = None,
        schedule: tuple[Edge, ...] = (),
    ) -> None:
        functools.update_wrapper(self, function)
        self.function, self.grid, self.options = function, grid, options or {}
        self.schedule = schedule
        self.name = getattr(function, "__name__", "kernel")
        code = getattr(plain(function), "__code__", None)
        self.line = (code.co_filename, code.co_firstlineno) if code else kernel_line()
        self._entry = entry(self._launch, self.line, self.name)

    def __getitem__(self, grid: int | Sequence[int]) -> "Kernel":
        axes = (grid,) if isinstance(grid, int) else tuple(grid)
        return Kernel(self.function, axes, self.options, self.schedule)

    def with_schedule(self, schedule: Sequence[Any], kind: Any = None) -> "Kernel":
        """The kernel with instructions that wait for others, by their `name=`.

        Args:
            schedule: pairs (consumer, producer or producers).
            kind: see `NkiInstruction.depends_on`.
        """
        found = (*self.schedule, *edges(schedule, kind))
        return Kernel(self.function, self.grid, self.options, found)

    @property
    def __call__(self) -> Any:
        """A property, so that no frame of this file lies between the caller and the kernel."""
        return self.function if context.in_kernel() else self._entry

    def _launch(self, *args: Any, **kwargs: Any) -> tuple[Any, Exception | None]:
        try:
            return run(self, args, kwargs), None
        except Exception as error:
            return None, error.with_traceback(without_simulator_frames(error.__traceback__))


def jit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Make a kernel of a function. The compiler's options have no effect, and a run says so."""
    unknown = options.keys() - OPTIONS
    if unknown:
        expected = f"options among {', '.join(sorted(OPTIONS))}"
        refuse("signature", "", expected, ", ".join(sorted(unknown)), "nki.jit")
    if function is None:
        return functools.partial(jit, **options)
    return function if isinstance(function, Kernel) else Kernel(function, options=options)


def simulate(kernel: Callable[..., Any]) -> Kernel:
    """The kernel itself: calling it simulates."""
    return kernel if isinstance(kernel, Kernel) else Kernel(kernel)


def run(kernel: Kernel, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """One launch: bind, run every core, check capacity and outputs, hand arrays back."""
    session, name, line = context.current(), kernel.name, kernel.line
    context.set_op(name)
    try:
        bound = inspect.signature(kernel.function).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{name}() {error}") from None
    for option, given in kernel.options.items():
        refuse("jit-option", option, "no option: it has no effect here", given, "nki.jit", line)
    read = (kernel.function, *map(type, bound.arguments.values()))
    if read not in session.linted:
        for finding in lint.findings(kernel.function, session, bound.arguments.values()):
            refuse(finding.rule, "", finding.expected, finding.got, line=finding.line)
        session.linted.add(read)
    if session.backend == "vendor":
        if kernel.schedule:
            asked = ", ".join(consumer for consumer, _, _ in kernel.schedule)
            raise NotImplementedError(
                f"with_schedule: expected none for backend 'vendor', which models no time, "
                f"got one for {asked}; call the kernel without it"
            )
        return vendor.run(kernel.function, kernel.grid, session, bound.args, bound.kwargs)
    annotations = getattr(kernel.function, "__annotations__", {})
    exchange = Exchange()
    for argument, value in bound.arguments.items():
        mutable = "mutable" in str(annotations.get(argument, ""))
        if isinstance(value, list) and session.frontend == "parser":
            refuse("list-argument", argument, "a tuple", "a list", line=line)
        bound.arguments[argument] = exchange.tensors(value, argument, mutable)
    cores = _cores(session, kernel.grid)
    first = len(session.ledger.events)
    session.ledger.launch(len(cores))

    def body(core: Core, lane: Lane | None) -> Any:
        core.wait = lane.wait if lane is not None else None
        with context.running(session, core):
            context.set_op(name)
            result = kernel.function(*bound.args, **bound.kwargs)
            context.set_op(name)
            _check_capacity(session, core)
            return result

    if len(cores) == 1:
        result = body(cores[0], None)
    else:
        result = lockstep([functools.partial(body, core) for core in cores], line)[0]
    context.set_op(name)
    events = session.ledger.events[first:]
    with context.running(session, cores[0]):
        apply(kernel.schedule, events)
        check_order(events)
        _check_returned(events, cores[0], result)
        arrays = exchange.arrays(result)
    exchange.write_back()
    return arrays


def _cores(session: Session, grid: tuple[int, ...]) -> list[Core]:
    """The cores of a launch, which share outputs and mail."""
    count = int(np.prod(grid)) if grid else 1
    allowed = session.generation.logical_cores
    if len(grid) > 1 or count not in allowed:
        refuse("value", "grid", f"one dimension of {' or '.join(map(str, allowed))} cores", grid)
    shared: list[Any] = []
    mail: dict[tuple[int, int, int], Array] = {}
    return [Core(index, count, len(grid), shared=shared, mail=mail) for index in range(count)]


def _check_returned(events: Sequence[Event], core: Core, result: Any) -> None:
    """A kernel that returns nothing and changes no input has worked for nothing."""
    if result is not None:
        return
    outputs = {tensor.storage.serial: tensor.storage for tensor in core.shared}
    written = [
        access.storage for event in events for access in event.writes if not access.buffer.on_chip
    ]
    lost = [outputs[serial].line for serial in written if serial in outputs]
    if lost and len(lost) == len(written):
        expected = "a kernel that returns its shared_hbm outputs"
        refuse("no-output", "return", expected, "None; what was written is lost", line=lost[0])


def _check_capacity(session: Session, core: Core) -> None:
    """At the busiest moment; the line is that of the largest tile."""
    generation = session.generation
    for buffer, rule, limit in (
        (Buffer.sbuf, "sbuf-capacity", generation.sbuf_nominal),
        (Buffer.sbuf, "sbuf-usable", generation.sbuf_usable),
        (Buffer.psum, "psum-capacity", PSUM_BANKS * PSUM_BANK_BYTES),
    ):
        peak, tiles = session.ledger.peak(buffer, core.index)
        if peak > limit:
            largest = sorted(tiles, key=footprint, reverse=True)[:5]
            listed = "; ".join(
                f"{footprint(tile)} from {text(tile.line)}{' ' + tile.name if tile.name else ''}"
                for tile in largest
            )
            live = f"{peak} bytes in {len(tiles)} live tiles, the largest: {listed}"
            expected = f"<= {limit} bytes per partition on {generation.name}"
            refuse(rule, "", expected, live, line=largest[0].line)
