"""How bodies read their operands: rows of a tile, columns or numbers, and native integers."""

from typing import Any

import numpy as np

from nki_kernels.simulator.alu import Operator
from nki_kernels.simulator.context import refuse
from nki_kernels.simulator.dtypes import Array, int32, uint32
from nki_kernels.simulator.hardware import Engine
from nki_kernels.simulator.tensor import NkiTensor


def rows(tensor: NkiTensor, argument: str) -> Array:
    """A tile as float32 [P, N], free axes flattened."""
    return tensor.read32(argument).reshape(tensor.shape[0], -1)


def native(tensor: NkiTensor, argument: str) -> Array:
    """A tile as it is stored, [P, N]."""
    return tensor.read(argument).reshape(tensor.shape[0], -1)


def column(value: Any, argument: str, partitions: int) -> Any:
    """A number as float32, or a (P, 1) tile as float32 [P, 1]."""
    if not isinstance(value, NkiTensor):
        return np.float32(value)
    if value.shape[0] != partitions:
        refuse("shape", argument, f"shape ({partitions}, 1)", value)
    return rows(value, argument)


def apply(op: Operator, first: Any, second: Any, *, reverse: bool = False) -> Array:
    """`first op second`, or `second op first`."""
    return op(second, first) if reverse else op(first, second)


def computes_integers(engine: Engine, op: Operator, *tensors: NkiTensor) -> bool:
    """Bitwise everywhere; arithmetic on GpSimd if all operands are 32-bit integers."""
    whole = all(tensor.dtype in (int32, uint32) for tensor in tensors)
    return op.kind == "bitwise" or (engine is Engine.gpsimd and whole)


def integer_operand(value: Any, like: NkiTensor, argument: str) -> Array:
    """A Python int or an integer column in the dtype of an integer tile; for bitwise operators."""
    if isinstance(value, NkiTensor):
        if value.dtype.is_float:
            refuse("dtype", argument, "integers for a bitwise operator", value)
        if value.shape[0] != like.shape[0]:
            refuse("shape", argument, f"shape ({like.shape[0]}, 1)", value)
        return native(value, argument).astype(like.dtype.dtype)
    if isinstance(value, float) and not value.is_integer():
        refuse("dtype", argument, "an int for a bitwise operator", value)
    return np.asarray(int(value)).astype(like.dtype.dtype)
