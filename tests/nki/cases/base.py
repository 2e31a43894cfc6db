"""What a row of the op table is, and the arrays that the rows share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from nki_kernels.simulator import language as nl
from tests.nki.harness import Out

RNG = np.random.default_rng(7)
P, N = 64, 40
BF16 = ml_dtypes.bfloat16


def normal(*shape: int, scale: float = 1.0) -> Any:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def whole(*shape: int, low: int = -50, high: int = 50, dtype: Any = np.int32) -> Any:
    return RNG.integers(low, high, shape).astype(dtype)


X, Y, Z = normal(P, N, scale=100), normal(P, N), normal(P, N, scale=3)
POSITIVE = np.abs(X) + np.float32(0.5)
COLUMN, COLUMN2 = normal(P, 1), np.abs(normal(P, 1)) + 1
I32, J32 = whole(P, N), whole(P, N, low=1)
U8 = whole(P, N, low=0, high=2, dtype=np.uint8)


@dataclass(frozen=True)
class Case:
    id: str
    inputs: dict[str, Any]
    outputs: dict[str, Out]
    call: Callable[[Any], Any]
    expected: Callable[..., Any]  # of the inputs in float64: an array, or one per output
    options: dict[str, Any]


def case(id: str, inputs: Any, outputs: Any, call: Any, expected: Any, **options: Any) -> Case:
    named = outputs if isinstance(outputs, dict) else {"dst": outputs}
    return Case(id, inputs, named, call, expected, options)


LIKE = Out((P, N))
OPS64: dict[str, Any] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "power": lambda a, b: a**b,
    "mod": lambda a, b: a - np.floor(a / b) * b,
    "fmod": lambda a, b: a - np.trunc(a / b) * b,
    "abs_max": lambda a, b: np.where(abs(a) > abs(b), a, b),
    "abs_min": lambda a, b: np.where(abs(a) < abs(b), a, b),
    "equal": lambda a, b: a == b,
    "not_equal": lambda a, b: a != b,
    "greater": lambda a, b: a > b,
    "greater_equal": lambda a, b: a >= b,
    "less": lambda a, b: a < b,
    "less_equal": lambda a, b: a <= b,
    "logical_and": lambda a, b: (a != 0) & (b != 0),
    "logical_or": lambda a, b: (a != 0) | (b != 0),
    "logical_xor": lambda a, b: (a != 0) ^ (b != 0),
}


def op(name: str) -> Any:
    return getattr(nl, name)
