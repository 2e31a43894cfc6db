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
class In:
    """An input that does not lie in SBUF, or has a dtype that numpy does not."""

    array: Any
    buffer: Any = nl.sbuf
    dtype: Any = None


def tensor(value: Any) -> Any:
    """An SBUF tile of an array, or what an `In` asks for, filled as a kernel would."""
    given = value if isinstance(value, In) else In(value)
    made = nl.ndarray(given.array.shape, given.dtype or dtypes.find(given.array.dtype))
    made.write(given.array)
    return made if given.buffer is nl.sbuf else moved(made, given.buffer)


def moved(tile: Any, buffer: Any) -> Any:
    """A copy of a tile in another buffer."""
    made = nl.ndarray(tile.shape, tile.dtype, buffer=buffer)
    (isa.tensor_copy if buffer is nl.psum else isa.dma_copy)(made, tile)
    return made


def empty(out: Out) -> Any:
    """The tensor of an output, filled if it has an initial value."""
    if out.initial is None:
        return nl.ndarray(out.shape, out.dtype, buffer=out.buffer)
    on_chip = out.buffer in (nl.sbuf, nl.psum)
    made = nl.ndarray(out.shape, out.dtype, buffer=out.buffer if on_chip else nl.sbuf)
    isa.memset(made, out.initial)
    return made if on_chip else moved(made, out.buffer)


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
        tiles = {name: tensor(value) for name, value in inputs.items()}
        tiles |= {name: empty(out) for name, out in outputs.items()}
        call(SimpleNamespace(**tiles))
        for name in outputs:
            results[name] = tiles[name].read(name).copy()

    with session(**({"target": "trn2", "strict": True} | options)):
        jit(kernel)()
    return results
