"""Convenience functions: each makes a new SBUF tile and runs the instructions that fill it.

No broadcasting other than (P, 1) columns and numbers. They are experimental in NKI: product kernels
call `nki.isa`.
"""

from typing import Any

from nki_kernels.simulator import dtypes, isa
from nki_kernels.simulator.alu import OPERATORS
from nki_kernels.simulator.context import refuse
from nki_kernels.simulator.language.creation import ndarray
from nki_kernels.simulator.memory import Buffer
from nki_kernels.simulator.operators import FUNCTIONS, NlFunction
from nki_kernels.simulator.tensor import NkiTensor

ADD, MULTIPLY, NOT_EQUAL = (FUNCTIONS[name] for name in ("add", "multiply", "not_equal"))


def _tile(
    like: NkiTensor, dtype: Any, shape: Any = None, buffer: Buffer = Buffer.sbuf
) -> NkiTensor:
    return ndarray(shape or like.shape, dtype or like.dtype, buffer=buffer)


def load(src: NkiTensor, dtype: Any = None) -> NkiTensor:
    """An HBM tensor (or view) as a new SBUF tile."""
    tile = _tile(src, dtype)
    isa.dma_copy(tile, src)
    return tile


def load_transpose2d(src: NkiTensor, dtype: Any = None) -> NkiTensor:
    """A 2-d HBM tensor, transposed, as a new SBUF tile."""
    tile = _tile(src, None, (src.shape[1], src.shape[0]))
    isa.dma_transpose(tile, src, axes=(1, 0))
    return tile if dtype in (None, src.dtype) else copy(tile, dtype)


def store(dst: NkiTensor, value: NkiTensor) -> None:
    """An SBUF or PSUM tile into HBM; PSUM goes through SBUF."""
    if value.buffer is Buffer.psum:
        value = copy(value)
    isa.dma_copy(dst, value)


def copy(src: NkiTensor, dtype: Any = None) -> NkiTensor:
    """A copy in a new SBUF tile, bit exact unless the dtype changes."""
    tile = _tile(src, dtype)
    isa.tensor_copy(tile, src)
    return tile


def elementwise(function: NlFunction, operands: tuple[Any, ...], dtype: Any = None) -> NkiTensor:
    """`nl.add(x, y)` and its like: tensor_tensor, tensor_scalar or activation."""
    op = function.operator
    if op.arity == 1:
        return _unary(function, operands[0], dtype)
    x, y = operands
    tiles = [operand for operand in operands if isinstance(operand, NkiTensor)]
    if not tiles:
        refuse("signature", "", "at least one tile", operands, f"nl.{op.name}")
    if len(tiles) == 2 and x.shape == y.shape:
        tile = _tile(x, dtype)
        isa.tensor_tensor(tile, x, y, op=function)
        return tile
    swap = not isinstance(x, NkiTensor) or (isinstance(y, NkiTensor) and x.free == 1 < y.free)
    data, scalar = (y, x) if swap else (x, y)
    if isinstance(scalar, NkiTensor) and (scalar.free != 1 or scalar.shape[0] != data.shape[0]):
        refuse("shape", "y", f"{data.shape}, or one column", scalar.shape, f"nl.{op.name}")
    tile = _tile(data, dtype)
    isa.tensor_scalar(tile, data, op0=function, operand0=scalar, reverse0=swap)
    return tile


def _unary(function: NlFunction, x: NkiTensor, dtype: Any) -> NkiTensor:
    name = function.operator.name
    if name == "copy":
        return copy(x, dtype)
    tile = _tile(x, dtype)
    if name == "negative":
        isa.tensor_scalar(tile, x, op0=MULTIPLY, operand0=-1.0)
    elif name == "reciprocal":
        isa.reciprocal(tile, x)
    elif name in ("invert", "logical_not"):
        isa.tensor_scalar(tile, x, op0=function, operand0=None)
    else:
        isa.activation(tile, function, x)
    return tile


def _reduce(op: NlFunction, x: NkiTensor, axis: Any, dtype: Any, keepdims: bool) -> NkiTensor:
    axes = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    lost = {a % x.ndim for a in axes}
    shape = [1 if i in lost else n for i, n in enumerate(x.shape) if keepdims or i not in lost]
    tile = _tile(x, dtype, shape if len(shape) > 1 else [*shape, 1])
    isa.tensor_reduce(tile, op, x, axis=axis)
    return tile


def sum(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """Sum over free axes."""
    return _reduce(ADD, x, axis, dtype, keepdims)


def prod(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """Product over free axes."""
    return _reduce(MULTIPLY, x, axis, dtype, keepdims)


def max(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """Maximum over free axes."""
    return _reduce(FUNCTIONS["maximum"], x, axis, dtype, keepdims)


def min(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """Minimum over free axes."""
    return _reduce(FUNCTIONS["minimum"], x, axis, dtype, keepdims)


for _reduction, _operator in ((sum, "add"), (prod, "multiply"), (max, "maximum"), (min, "minimum")):
    setattr(_reduction, "operator", OPERATORS[_operator])  # noqa: B010  # `op=nl.max`


def mean(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """Mean over free axes."""
    total = _reduce(ADD, x, axis, dtypes.float32, keepdims)
    tile = _tile(total, dtype or x.dtype)
    isa.tensor_scalar(tile, total, op0=MULTIPLY, operand0=total.size / x.size)
    return tile


def matmul(x: NkiTensor, y: NkiTensor, transpose_x: bool = False) -> NkiTensor:
    """`x @ y`, or `x.T @ y` with `transpose_x`, as a PSUM tile of float32."""
    left = x if transpose_x else copy(transpose(x))
    tile = ndarray((left.free, y.free), dtypes.float32, buffer=Buffer.psum)
    isa.nc_matmul(tile, left, y, accumulate=False)
    return tile


def transpose(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """Partition axis and (flattened) free axes swapped, as a PSUM tile."""
    tile = _tile(x, None, (x.free, x.shape[0]), Buffer.psum)
    isa.nc_transpose(tile, x)
    if dtype in (None, x.dtype):
        return tile
    cast = _tile(tile, dtype, buffer=Buffer.psum)
    isa.tensor_copy(cast, tile)
    return cast


def where(condition: NkiTensor, x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """x where the condition is not 0, else y; numbers or tiles."""
    tile = _tile(
        condition,
        dtype or next((v.dtype for v in (x, y) if isinstance(v, NkiTensor)), dtypes.float32),
    )
    picked = []
    for value in (x, y):
        if not isinstance(value, NkiTensor):
            number, value = value, _tile(tile, None)
            isa.memset(value, float(number) if tile.dtype.is_float else int(number))
        picked.append(value)
    isa.tensor_copy(tile, picked[1])
    unsigned = condition.dtype.kind == "uint"
    mask = condition if unsigned else elementwise(NOT_EQUAL, (condition, 0.0), dtypes.uint8)
    isa.tensor_copy_predicated(tile, picked[0], mask)
    return tile


def broadcast_to(x: NkiTensor, shape: Any, dtype: Any = None) -> NkiTensor:
    """A view with free axes of size 1 repeated; a row of one partition is copied to all by DMA.

    Another `dtype` makes a copy.
    """
    if x.shape[0] != shape[0]:
        tile = _tile(x, None, (shape[0], *x.shape[1:]))
        steps = [
            [0, shape[0]],
            *([s, n] for s, n in zip(x.strides[1:], x.shape[1:], strict=True)),
        ]
        if x.on_chip:
            for row in range(shape[0]):
                isa.dma_copy(tile[row : row + 1], x)
        else:
            isa.dma_copy(tile, x.ap(steps))
        x = tile
    for axis, extent in enumerate(shape):
        if x.shape[axis] != extent:
            x = x.broadcast(axis, extent)
    return x if dtype in (None, x.dtype) else copy(x, dtype)


def expand_dims(x: NkiTensor, axis: int) -> NkiTensor:
    """A view with an axis of size 1 more."""
    return x.expand_dim(axis)


def device_print(print_prefix: str, tensor: Any) -> None:
    """Print a tensor's values while the kernel runs."""
    print(print_prefix, tensor.read() if isinstance(tensor, NkiTensor) else tensor)
