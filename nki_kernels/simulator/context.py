"""The session: what is simulated, for which target and version, and how strictly.

`current()` is the session in force; `refuse(rule, ...)` is the one way to break off.
"""

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nki_kernels.simulator.dtypes import Array
from nki_kernels.simulator.errors import (
    Line,
    NkiValidationError,
    NkiWarning,
    kernel_line,
    text,
)
from nki_kernels.simulator.hardware import GENERATIONS, TARGETS, Engine, Generation
from nki_kernels.simulator.ledger import Ledger
from nki_kernels.simulator.rules import RULES, Mode

if TYPE_CHECKING:
    from nki_kernels.simulator.report import Report

VERSIONS = ("0.3", "0.4", "0.5", "0.6", "0.7")
FRONTENDS = ("parser", "tracer")
BACKENDS = ("simulator", "vendor")
BACKEND_VARIABLE = "NKI_SIMULATOR_BACKEND"  # what `install()` and sessions take by default
SWITCH_VARIABLE = "NKI_SIMULATOR"  # "1": a call of the vendor's kernel simulates
MARK = "__simulated__"  # of the module that `install()` makes
TARGET_VARIABLE = "NEURON_PLATFORM_TARGET_OVERRIDE"
LOOP_LIMIT = 100_000  # iterations
FRONTEND_VARIABLE = "NKI_COMPILER_FRONTEND"  # "custom": the parser, in 0.7 too


@dataclass(frozen=True)
class Loop:
    """One iteration of a run-time loop: where it stands, its number on the core, the iteration."""

    line: Line
    number: int
    iteration: int = 0


@dataclass
class Core:
    """What one physical core keeps for itself while a kernel runs."""

    index: int = 0
    count: int = 1
    ndim: int = 0  # dimensions of the launch grid: 0 without one
    registers: dict[Engine, Array | None] = field(default_factory=dict)  # reduce registers
    random: dict[Engine, Array] = field(default_factory=dict)  # state of the random generators
    wait: Callable[[], None] | None = None  # lock step with the other core (`core_barrier`)
    loop: Loop | None = None  # the run-time loop that runs
    loops: int = 0  # run-time loops so far
    in_order: bool = False  # inside `nl.no_reorder()`
    previous: int | None = None  # the last instruction of the `no_reorder` block
    shared: list[Any] = field(default_factory=list)  # shared_hbm tensors in order of allocation
    shared_used: int = 0
    mail: dict[tuple[int, int, int], Array] = field(default_factory=dict)  # sendrecv


@dataclass
class Session:
    """One setting and what ran under it. Made by `session(...)`."""

    generation: Generation
    nki: str
    strict: bool
    frontend: str
    backend: str = "simulator"
    loop_limit: int = LOOP_LIMIT
    ledger: Ledger = field(default_factory=Ledger)
    warned: set[tuple[str, str]] = field(default_factory=set)
    linted: set[object] = field(default_factory=set)  # kernels with the types of their arguments

    @property
    def version(self) -> tuple[int, ...]:
        """The NKI version as numbers, to compare."""
        return tuple(int(part) for part in self.nki.split("."))

    def report(self) -> "Report":
        """What ran so far would cost on the target: modelled, not measured."""
        from nki_kernels.simulator.report import report

        return report(self)


_session: ContextVar[Session | None] = ContextVar("session", default=None)
_core: ContextVar[Core | None] = ContextVar("core", default=None)
_op = threading.local()
_backend: str | None = None
_warned: set[tuple[str, str]] = set()


def make(
    target: str | None = None,
    nki: str = VERSIONS[-1],
    strict: bool = False,
    frontend: str | None = None,
    backend: str | None = None,
    loop_limit: int = LOOP_LIMIT,
) -> Session:
    """A session; see `session`."""
    target = target or os.environ.get(TARGET_VARIABLE) or "trn3"
    if target not in TARGETS:
        raise ValueError(f"target: expected one of {', '.join(TARGETS)}, got {target!r}")
    if nki not in VERSIONS:
        raise ValueError(f"nki: expected one of {', '.join(VERSIONS)}, got {nki!r}")
    old = nki < "0.7" or os.environ.get(FRONTEND_VARIABLE) in ("custom", "parser")
    frontend = frontend or ("parser" if old else "tracer")
    if frontend not in FRONTENDS:
        raise ValueError(f"frontend: expected one of {', '.join(FRONTENDS)}, got {frontend!r}")
    if frontend == "tracer" and nki < "0.6":
        raise ValueError(f"frontend: expected 'parser' before NKI 0.6, got 'tracer' for {nki}")
    if loop_limit < 1:
        raise ValueError(f"loop_limit: expected at least 1 iteration, got {loop_limit}")
    chosen = choose_backend(backend or _backend)
    return Session(GENERATIONS[TARGETS[target]], nki, strict, frontend, chosen, loop_limit)


def choose_backend(name: str | None) -> str:
    """The backend of that name, of the environment, else the simulator."""
    name = name or os.environ.get(BACKEND_VARIABLE) or BACKENDS[0]
    if name not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


def set_backend(name: str | None) -> None:
    """What sessions take from here on; None: the environment's."""
    global _backend
    _backend = name


@contextmanager
def session(
    target: str | None = None,
    nki: str = VERSIONS[-1],
    strict: bool = False,
    frontend: str | None = None,
    backend: str | None = None,
    loop_limit: int = LOOP_LIMIT,
) -> Iterator[Session]:
    """Run the kernels of the block for one target and version of NKI.

    Args:
        target: trn1, trn2, trn3 (or gen2-gen4, inf2); the environment's
            NEURON_PLATFORM_TARGET_OVERRIDE, else trn3, as in the vendor's simulator.
        nki: 0.3 to 0.7.
        strict: also refuse what the vendor's simulator lets pass (mode `strict` of the rules).
        frontend: which Python a kernel may use: "parser" (default before 0.7, and where the
            environment says NKI_COMPILER_FRONTEND=custom) or "tracer" (from 0.6).
        backend: "simulator", or "vendor": kernels run through the vendor's own `nki.simulate`.
            That of `install()` unless given.
        loop_limit: iterations after which a loop on a register is refused as endless.
    """
    with using(make(target, nki, strict, frontend, backend, loop_limit)) as made:
        yield made


@contextmanager
def using(made: Session) -> Iterator[Session]:
    """Run the kernels of the block in a session made before."""
    token = _session.set(made)
    try:
        with environment(made):
            yield made
    finally:
        _session.reset(token)


@contextmanager
def environment(made: Session) -> Iterator[None]:
    """What the vendor's simulator reads from the environment, where it is the backend."""
    vendor = made.backend == "vendor"
    given = {TARGET_VARIABLE: made.generation.name, SWITCH_VARIABLE: "1"} if vendor else {}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def current() -> Session:
    """The session in force, or a default one, which warns once per process."""
    return _session.get() or replace(make(), warned=_warned)


@contextmanager
def running(session: Session, core: Core) -> Iterator[None]:
    """Make `session` and `core` those of a kernel's run."""
    tokens = _session.set(session), _core.set(core)
    try:
        yield
    finally:
        _session.reset(tokens[0])
        _core.reset(tokens[1])


def core() -> Core:
    """The core that runs now; refused outside a kernel."""
    found = _core.get()
    if found is None:
        refuse("session", "", "a running kernel", "a call from outside")
        raise AssertionError
    return found


def enter_loop(op: str) -> None:
    """A run-time loop begins; the device has no second one inside it."""
    here = core()
    if here.loop is not None:
        expected = "one run-time loop at a time: unroll one of them with range()"
        refuse("nested-loop", "", expected, f"a loop inside that of {text(here.loop.line)}", op)
    if here.in_order:
        expected = "range() inside nl.no_reorder(), or no_reorder inside the loop's body"
        refuse("schedule", "", expected, "a run-time loop", op)
    here.loops += 1
    here.loop = Loop(kernel_line(), here.loops)


def leave_loop() -> None:
    """The run-time loop has ended."""
    core().loop = None


def next_iteration() -> None:
    """An iteration of the run-time loop has ended."""
    here = core()
    assert here.loop is not None
    here.loop = replace(here.loop, iteration=here.loop.iteration + 1)


def refuse_endless(iterations: int, op: str) -> None:
    """Refuse a loop that has run longer than the session allows."""
    limit = current().loop_limit
    if iterations >= limit:
        expected = f"the register to reach 0 within {limit:,} iterations"
        raised = "session(loop_limit=...) or --loop-limit raises that"
        refuse("endless-loop", "", f"{expected}; {raised}", "a register that is not 0", op)


def in_kernel() -> bool:
    """Whether a kernel runs."""
    return _core.get() is not None


def set_op(name: str) -> None:
    """Name the instruction whose checks and work follow, for messages."""
    _op.name = name


def set_engine(engine: Engine) -> None:
    """Name the engine of the instruction that runs."""
    _op.engine = engine


def running_engine() -> Engine:
    """The engine of the instruction that runs."""
    return getattr(_op, "engine", Engine.unknown)


def refuse(
    rule: str,
    argument: str,
    expected: str,
    got: object,
    op: str | None = None,
    line: Line | None = None,
    kind: type[NkiValidationError] = NkiValidationError,
) -> Any:
    """Raise `NkiValidationError` for a broken rule; warn once if it is a strict one and we are not.

    `op` and `line` are the running instruction's unless given. Returns only after a warning.
    """
    row, here = RULES[rule], current()
    where = text(line or kernel_line())
    name = op or getattr(_op, "name", "") or "nki"
    error = kind(name, argument, expected, str(got), row.name, where)
    if row.mode is Mode.ALWAYS or here.strict:
        raise error
    if (rule, where) not in here.warned:
        here.warned.add((rule, where))
        warnings.warn(str(error), NkiWarning, stacklevel=2)
    return None
