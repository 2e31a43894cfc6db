"""One instruction on given tiles: inputs in, every output back, each as an array."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from nki_kernels.simulator import dtypes, isa, jit, session
from nki_kernels.simulator import language as nl


@dataclass(frozen=True)
class Out:
    """An output tile; `initial` fills it first."""

    shape: tuple[int, ...]
    dtype: Any = nl.float32
    buffer: Any = nl.sbuf
    initial: Any = None


@dataclass(frozen=True)
class Psum:
    """An input that lies in PSUM."""

    array: Any


def tile(value: Any) -> Any:
    """An SBUF or PSUM tile of an array, filled as a kernel would."""
    psum = isinstance(value, Psum)
    array = value.array if psum else value
    made = nl.ndarray(array.shape, dtypes.find(array.dtype))
    made.write(array)
    if not psum:
        return made
    moved = nl.ndarray(made.shape, made.dtype, buffer=nl.psum)
    isa.tensor_copy(moved, made)
    return moved


def run(
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Out],
    call: Callable[[Any], None],
    **options: Any,
) -> dict[str, np.ndarray]:
    """`call(t)` with the tiles as attributes of t; the outputs afterwards.

    Options are those of `session`; trn2 and strict unless given.
    """
    results: dict[str, np.ndarray] = {}

    def kernel() -> None:
        tiles = {name: tile(value) for name, value in inputs.items()}
        for name, out in outputs.items():
            tiles[name] = nl.ndarray(out.shape, out.dtype, buffer=out.buffer)
            if out.initial is not None:
                isa.memset(tiles[name], out.initial)
        call(SimpleNamespace(**tiles))
        for name in outputs:
            results[name] = tiles[name].read(name).copy()

    with session(**({"target": "trn2", "strict": True} | options)):
        jit(kernel)()
    return results
