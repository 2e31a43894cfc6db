"""Kernels: `nki.jit`, launch grids, arrays in and out, and what is checked at the end of a run."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nki_kernels.simulator import context, dtypes
from nki_kernels.simulator.context import Core, Session, refuse
from nki_kernels.simulator.dtypes import Array
from nki_kernels.simulator.errors import Line, kernel_line, text, without_simulator_frames
from nki_kernels.simulator.hardware import PSUM_BANK_BYTES, PSUM_BANKS
from nki_kernels.simulator.launch import Lane, lockstep
from nki_kernels.simulator.ledger import footprint
from nki_kernels.simulator.memory import Buffer, Storage
from nki_kernels.simulator.tensor import NkiTensor


class Kernel:
    """A function under `nki.jit`. Called with numpy arrays it runs and returns numpy arrays.

    `kernel[2](...)` runs it on two cores that share HBM inputs and `shared_hbm` outputs.
    """

    def __init__(self, function: Callable[..., Any], grid: tuple[int, ...] = ()) -> None:
        functools.update_wrapper(self, function)
        self.function, self.grid = function, grid

    def __getitem__(self, grid: int | Sequence[int]) -> "Kernel":
        return Kernel(self.function, (grid,) if isinstance(grid, int) else tuple(grid))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if context.in_kernel():
            return self.function(*args, **kwargs)
        try:
            return run(self, args, kwargs)
        except Exception as error:
            raise error.with_traceback(without_simulator_frames(error.__traceback__)) from None


def jit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Make a kernel of a function; options of the compiler are accepted and have no effect."""
    if function is None:
        return functools.partial(jit, **options)
    return function if isinstance(function, Kernel) else Kernel(function)


def simulate(kernel: Callable[..., Any]) -> Kernel:
    """The kernel itself: calling it simulates."""
    return kernel if isinstance(kernel, Kernel) else Kernel(kernel)


def run(kernel: Kernel, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """One launch: bind, run every core, check capacity and outputs, hand arrays back."""
    session = context.current()
    name = getattr(kernel.function, "__name__", "kernel")
    context.set_op(name)
    bound = inspect.signature(kernel.function).bind(*args, **kwargs)
    annotations = getattr(kernel.function, "__annotations__", {})
    copies: list[tuple[Array, Array]] = []  # (array of the caller, contiguous copy)
    for argument, value in bound.arguments.items():
        mutable = "mutable" in str(annotations.get(argument, ""))
        bound.arguments[argument] = _tensors(value, argument, mutable, copies)
    code = getattr(kernel.function, "__code__", None)
    line = (code.co_filename, code.co_firstlineno) if code else kernel_line()
    cores = _cores(session, kernel.grid)
    session.ledger.launch(len(cores))

    def body(core: Core, lane: Lane | None) -> Any:
        core.wait = lane.wait if lane is not None else None
        with context.running(session, core):
            context.set_op(name)
            result = kernel.function(*bound.args, **bound.kwargs)
            context.set_op(name)
            _check_capacity(session, core, line)
            return result

    if len(cores) == 1:
        result = body(cores[0], None)
    else:
        result = lockstep([functools.partial(body, core) for core in cores], line)[0]
    context.set_op(name)
    with context.running(session, cores[0]):
        arrays = _arrays(result, line)
    for original, copy in copies:
        if original.flags.writeable:
            original[...] = copy
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


def _tensors(value: Any, name: str, mutable: bool, copies: list[tuple[Array, Array]]) -> Any:
    """The argument with arrays as HBM tensors, also inside tuples, lists and dicts."""
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_tensors(item, name, mutable, copies) for item in value)
    if isinstance(value, dict):
        return {key: _tensors(item, name, mutable, copies) for key, item in value.items()}
    if isinstance(value, np.generic) or not hasattr(value, "__array__"):
        return value
    array = np.asarray(value)
    dtype = dtypes.find(array.dtype)
    if dtype is None:
        refuse("argument-dtype", name, "an array of a dtype of nl, such as float32", array.dtype)
        raise AssertionError
    if not array.size:
        refuse("shape", name, "an array with elements", array.shape)
    if not array.flags.c_contiguous:
        copies.append((array, np.ascontiguousarray(array)))
        array = copies[-1][1]
    storage = Storage.of_array(array, Buffer.hbm, name, kernel_line())
    storage.is_input, storage.mutable = True, mutable
    strides = [step // array.itemsize for step in array.strides]
    return NkiTensor(storage, dtype, array.shape, strides)


def _arrays(value: Any, line: Line) -> Any:
    """The result with tensors as arrays."""
    if isinstance(value, (list, tuple)):
        return type(value)(_arrays(item, line) for item in value)
    if not isinstance(value, NkiTensor):
        return value
    if value.on_chip:
        expected = "a tensor in shared_hbm: copy it there with dma_copy"
        refuse("buffer", "return", expected, value, line=line)
    if value.buffer is not Buffer.shared_hbm and not value.storage.is_input:
        refuse("output-buffer", "return", "buffer=nl.shared_hbm", value, line=line)
    if not value.is_defined():
        expected = "an output that was written wholly"
        refuse("read-undefined", "return", expected, f"{value!r}, partly or not", line=line)
    return value.array().copy()


def _check_capacity(session: Session, core: Core, line: Line) -> None:
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
            refuse(rule, "", expected, live, line=line)
