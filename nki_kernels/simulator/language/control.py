"""Loops, the launch grid, sizes of the hardware, and classes that kernels may use."""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Self

from nki_kernels.simulator import context
from nki_kernels.simulator.context import refuse
from nki_kernels.simulator.hardware import PARTITIONS, PSUM_BANK_BYTES, PSUM_BANKS
from nki_kernels.simulator.scalars import NkiScalar, RuntimeScalar, VirtualRegister

affine_range = sequential_range = static_range = range


LoopBound = int | RuntimeScalar


def _indices(op: str, lower: LoopBound, upper: LoopBound, step: int) -> range:
    """The indices of a run-time loop."""
    if not isinstance(step, int) or step < 1:
        refuse("value", "step", "a compile-time int above 0", repr(step), op)
    bounds = []
    for name, value in (("lower", lower), ("upper", upper)):
        if isinstance(value, RuntimeScalar) and value.bits > 32:
            refuse("dtype", name, "32 bits", f"an NkiScalar of {value.bits}", op)
        if not isinstance(value, (Integral, RuntimeScalar)):
            refuse("dtype", name, "an int, a register or an NkiScalar", repr(value), op)
        bounds.append(value.value if isinstance(value, RuntimeScalar) else int(value))
    return range(bounds[0], bounds[1], step)


def fori_loop(
    lower: LoopBound,
    upper: LoopBound,
    body_fun: Callable[[RuntimeScalar], None],
    step: int = 1,
) -> None:
    """Run `body_fun(i)` for lower <= i < upper. The index is a run-time value: an `NkiScalar` in
    0.7 unless a bound is a register, a `VirtualRegister` before."""
    _since_0_6("fori_loop")
    registers = any(isinstance(bound, VirtualRegister) for bound in (lower, upper))
    kind = VirtualRegister if registers or context.current().nki < "0.7" else NkiScalar
    indices = _indices("fori_loop", lower, upper, step)
    context.enter_loop("fori_loop")
    try:
        for index in indices:
            body_fun(kind(index))
            context.next_iteration()
    finally:
        context.leave_loop()


def while_loop(
    init: VirtualRegister, body_fun: Callable[[VirtualRegister], VirtualRegister]
) -> None:
    """Run `register = body_fun(register)` while the register is not 0; not once if it starts so.

    The body gets a copy: only what it returns counts. Refused after `session(loop_limit=...)`
    iterations.
    """
    _since_0_6("while_loop")
    register, iterations = _condition(init, "init"), 0
    context.enter_loop("while_loop")
    try:
        while register.value != 0:
            context.refuse_endless(iterations, "while_loop")
            register = _condition(body_fun(VirtualRegister(register.value)), "body_fun")
            context.next_iteration()
            iterations += 1
    finally:
        context.leave_loop()


def _condition(value: Any, argument: str) -> VirtualRegister:
    if not isinstance(value, VirtualRegister):
        expected = "a register of nisa.register_alloc"
        if argument == "body_fun":
            expected = "a body that returns the next condition, a register"
        refuse("dtype", argument, expected, repr(value), "while_loop")
    return value  # type: ignore[no-any-return]


def _since_0_6(name: str) -> None:
    if context.current().nki < "0.6":
        got = f"NKI {context.current().nki}"
        refuse("nki-version", "", "NKI 0.6 or newer; nl.dynamic_range before", got, name)


def dynamic_range(
    start: LoopBound, stop: LoopBound | None = None, step: int = 1
) -> Iterator[VirtualRegister]:
    """A run-time loop of the parser (NKI 0.3-0.6); use `fori_loop` from 0.6 on."""
    if context.current().frontend == "tracer":
        refuse("nki-version", "", "nl.fori_loop", "the tracer of NKI 0.7", "dynamic_range")
    first, last = (0, start) if stop is None else (start, stop)
    return _counted(_indices("dynamic_range", first, last, step))


def _counted(indices: range) -> Iterator[VirtualRegister]:
    context.enter_loop("dynamic_range")
    try:
        for index in indices:
            yield VirtualRegister(index)
            context.next_iteration()
    finally:
        context.leave_loop()


def program_id(axis: int = 0) -> int:
    """Which core of the launch grid this is."""
    _only_axis("axis", axis, "program_id")
    return context.core().index


def num_programs(axes: int | Sequence[int] | None = None) -> int:
    """Cores of the launch grid."""
    for axis in axes if isinstance(axes, (list, tuple)) else [axes]:
        _only_axis("axes", axis, "num_programs")
    return context.core().count


def _only_axis(argument: str, axis: Any, op: str) -> None:
    if axis not in (0, None):
        refuse("value", argument, "0: a launch grid has one dimension", axis, op)


def program_ndim() -> int:
    """Dimensions of the launch grid: 0 without one."""
    return context.core().ndim


class TileSize:
    """`nl.tile_size`: limits of the target."""

    pmax = PARTITIONS
    psum_bank_fmax = psum_fmax = PSUM_BANK_BYTES // 4
    psum_num_banks = PSUM_BANKS
    psum_bank_fmax_bytes = PSUM_BANK_BYTES
    psum_fmax_bytes = PSUM_BANKS * PSUM_BANK_BYTES
    gemm_stationary_fmax = PARTITIONS
    bn_stats_fmax = 512
    psum_min_align, sbuf_min_align = 4, 1

    @property
    def gemm_moving_fmax(self) -> int:
        """Columns of nc_matmul's moving operand; 512 on gen2 and gen3."""
        return context.current().generation.moving_max

    @property
    def sbuf_fmax_bytes(self) -> int:
        """Usable bytes of an SBUF partition."""
        return context.current().generation.sbuf_usable

    total_available_sbuf_size = sbuf_fmax_bytes

    @property
    def sbuf_fmax(self) -> int:
        """Usable float32 elements of an SBUF partition."""
        return self.sbuf_fmax_bytes // 4

    @property
    def sbuf_size_bytes(self) -> int:
        """Usable bytes of all SBUF partitions together."""
        return self.sbuf_fmax_bytes * PARTITIONS


tile_size = TileSize()


class NKIObject:
    """Base of classes that kernels make: bare class attributes are constructor fields.

    The constructor is made with the first object, for until then a `@dataclass` of the kernel's
    own, frozen perhaps, may make it.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        annotated = inspect.get_annotations(cls)
        bare: dict[str, Any] = {}
        for name, value in list(vars(cls).items()):
            if name.startswith("__") or callable(value) or hasattr(value, "__get__"):
                continue
            bare[name] = annotated.pop(name, Any)
            if isinstance(value, (list, dict, set)):
                setattr(cls, name, field(default_factory=functools.partial(copy.copy, value)))
        cls.__annotations__ = annotated | bare

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        if "__init__" not in vars(cls) and cls.__annotations__:
            dataclass(eq=False)(cls)
        return super().__new__(cls)


@contextmanager
def no_reorder() -> Iterator[None]:
    """Instructions of the block start in program order, on all engines together."""
    core = context.core()
    outermost, core.in_order = not core.in_order, True
    try:
        yield
    finally:
        if outermost:
            core.in_order, core.previous = False, None
