"""Loops, the launch grid, sizes of the hardware, and classes that kernels may use."""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Self

from nki_kernels.simulator import context
from nki_kernels.simulator.context import refuse
from nki_kernels.simulator.hardware import PARTITIONS, PSUM_BANK_BYTES, PSUM_BANKS
from nki_kernels.simulator.scalars import NkiScalar, RuntimeScalar, VirtualRegister

affine_range = sequential_range = static_range = range


def _bound(value: Any) -> int:
    return value.value if isinstance(value, RuntimeScalar) else int(value)


def fori_loop(
    lower: int | RuntimeScalar,
    upper: int | RuntimeScalar,
    body_fun: Callable[[RuntimeScalar], None],
    step: int = 1,
) -> None:
    """Run `body_fun(i)` for lower <= i < upper. The index is a run-time value: an `NkiScalar` in
    0.7 unless a bound is a register, a `VirtualRegister` before."""
    registers = any(isinstance(bound, VirtualRegister) for bound in (lower, upper))
    kind = VirtualRegister if registers or context.current().nki < "0.7" else NkiScalar
    context.enter_loop("fori_loop")
    try:
        for index in range(_bound(lower), _bound(upper), step):
            body_fun(kind(index))
    finally:
        context.leave_loop()


def dynamic_range(
    start: int | RuntimeScalar, stop: int | RuntimeScalar | None = None, step: int = 1
) -> Iterator[VirtualRegister]:
    """A run-time loop of the parser (NKI 0.3-0.6); use `fori_loop` from 0.6 on."""
    if context.current().frontend == "tracer":
        refuse("nki-version", "", "nl.fori_loop", "the tracer of NKI 0.7", "dynamic_range")
    first, last = (0, start) if stop is None else (start, stop)
    return _counted(range(_bound(first), _bound(last), step))


def _counted(indices: range) -> Iterator[VirtualRegister]:
    context.enter_loop("dynamic_range")
    try:
        yield from map(VirtualRegister, indices)
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


def no_reorder() -> AbstractContextManager[None]:
    """`with nl.no_reorder():` keeps the order of the program, which is always kept here."""
    return nullcontext()
