"""Convenience functions made of several others: softmax, norms, statistics, random numbers.

Intermediates are float32; the result is rounded once to `dtype`, that of the input unless given.
"""

from collections.abc import Sequence
from typing import Any

from nki_kernels.simulator import dtypes, isa
from nki_kernels.simulator.context import refuse
from nki_kernels.simulator.hardware import PARTITIONS
from nki_kernels.simulator.language.creation import dtype_of, ndarray
from nki_kernels.simulator.language.wrappers import (
    broadcast_to,
    copy,
    elementwise,
    max,
    mean,
    min,
    sum,
)
from nki_kernels.simulator.memory import Buffer
from nki_kernels.simulator.operators import FUNCTIONS
from nki_kernels.simulator.tensor import NkiTensor


def _call(name: str, *operands: Any, dtype: Any = dtypes.float32) -> NkiTensor:
    return elementwise(FUNCTIONS[name], operands, dtype)


def softmax(x: NkiTensor, axis: Any = -1, dtype: Any = None) -> NkiTensor:
    """`exp(x - max) / sum` over the last free axes, of the shape of `x`."""
    top = max(x, axis, dtypes.float32, keepdims=True)
    weights = _call("exp", _call("subtract", x, broadcast_to(top, x.shape)))
    share = _call("reciprocal", sum(weights, axis, keepdims=True))
    return _call("multiply", weights, broadcast_to(share, x.shape), dtype=dtype or x.dtype)


def rms_norm(
    x: NkiTensor,
    w: NkiTensor,
    axis: Any,
    n: int,
    epsilon: float = 1e-6,
    dtype: Any = None,
    compute_dtype: Any = None,
) -> NkiTensor:
    """`x / sqrt(sum(x * x) / n + epsilon) * w`; `w` of the shape of `x`, a row or a column.

    `compute_dtype` is that of the intermediates: float32 unless given.
    """
    kind = compute_dtype or dtypes.float32
    power = sum(_call("square", x, dtype=kind), axis, keepdims=True)
    isa.tensor_scalar(
        *(power, power, FUNCTIONS["multiply"], 1 / n),
        op1=FUNCTIONS["add"],
        operand1=epsilon,
    )
    scale = _call("rsqrt", power, dtype=kind)
    normed = _call("multiply", x, broadcast_to(scale, x.shape), dtype=kind)
    return _call("multiply", normed, broadcast_to(w, x.shape), dtype=dtype or x.dtype)


def var(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """Variance (of the population) over free axes. `keepdims` is ignored, as documented: always."""
    centre = mean(x, axis, dtypes.float32, keepdims=True)
    distance = _call("subtract", x, broadcast_to(centre, x.shape))
    return mean(_call("square", distance), axis, dtype or x.dtype, keepdims=True)


def all(x: NkiTensor, axis: Any, dtype: Any = None) -> NkiTensor:
    """1 where no element over the free axes is 0, else 0."""
    return min(_call("not_equal", x, 0.0), axis, dtype or x.dtype)


def gather_flattened(
    data: NkiTensor, indices: NkiTensor, axis: int = 0, dtype: Any = None
) -> NkiTensor:
    """`data[p, indices[p, ...]]`, the free axes of `data` flattened; of the shape of `indices`."""
    if axis != 0:
        expected = "0: indices go over all free axes, of each partition alone"
        refuse("value", "axis", expected, axis, "gather_flattened")
    places = indices if indices.dtype == dtypes.uint32 else copy(indices, dtypes.uint32)
    tile = ndarray(indices.shape, data.dtype)
    isa.nc_n_gather(tile, data, places)
    return tile if dtype in (None, data.dtype) else copy(tile, dtype)


def dropout(x: NkiTensor, rate: Any, dtype: Any = None) -> NkiTensor:
    """Elements zeroed with probability `rate`, a number or (P, 1); the others keep their value."""
    tile = ndarray(x.shape, x.dtype)
    isa.dropout(tile, x, rate)
    return tile if dtype in (None, x.dtype) else copy(tile, dtype)


def random_seed(seed: NkiTensor) -> None:
    """Seed the generators of `rand` and `dropout` with the 32 bits of a (1, 1) tile."""
    isa.set_rng_seed(seed)


def rand(
    shape: Sequence[int], dtype: Any, buffer: Buffer = Buffer.sbuf, name: str = ""
) -> NkiTensor:
    """A tensor of uniform random numbers in [0, 1): 24 bits, rounded to `dtype`, a float."""
    if not dtype_of(dtype, "rand").is_float:
        refuse("dtype", "dtype", "a float: the numbers lie in 0..1", dtype, "rand")
    tensor = ndarray(shape, dtype, buffer=buffer, name=name)
    if buffer.on_chip:
        _fill(tensor)
        return tensor
    for start in range(0, tensor.shape[0], PARTITIONS):
        stop = start + PARTITIONS
        rows = tensor[start : stop if stop < tensor.shape[0] else None]
        tile = ndarray(rows.shape, tensor.dtype)
        _fill(tile)
        isa.dma_copy(rows, tile)
    return tensor


def _fill(tile: NkiTensor) -> None:
    """The highest 24 of 32 random bits, as a fraction."""
    bits = ndarray(tile.shape, dtypes.uint32)
    isa.rng(bits)
    isa.tensor_scalar(bits, bits, FUNCTIONS["right_shift"], 8)
    isa.tensor_scalar(tile, bits, FUNCTIONS["multiply"], 2.0**-24)
