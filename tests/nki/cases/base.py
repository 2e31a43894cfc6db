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
    exact: bool = False  # floats too are compared exactly

    @property
    def op(self) -> str:
        return self.id.split("-")[0]


def case(
    id: str,
    inputs: Any,
    outputs: Any,
    call: Any,
    expected: Any,
    *,
    exact: bool = False,
    **options: Any,
) -> Case:
    named = outputs if isinstance(outputs, dict) else {"dst": outputs}
    return Case(id, inputs, named, call, expected, options, exact)


FORMATS = {  # bits of mantissa, least exponent, largest number, what lies beyond it
    nl.float32: (23, -126, (2 - 2.0**-23) * 2.0**127, np.inf),
    nl.tfloat32: (10, -126, (2 - 2.0**-10) * 2.0**127, np.inf),
    nl.bfloat16: (7, -126, (2 - 2.0**-7) * 2.0**127, np.inf),
    nl.float16: (10, -14, 65504, np.inf),
    nl.float8_e4m3: (3, -6, 240, np.inf),
    nl.float8_e4m3fn: (3, -6, 448, np.nan),
    nl.float8_e5m2: (2, -14, 57344, np.inf),
}
LIMITS = {  # of the integers
    nl.int8: (-(2**7), 2**7 - 1),
    nl.int16: (-(2**15), 2**15 - 1),
    nl.int32: (-(2**31), 2**31 - 1),
    nl.uint8: (0, 2**8 - 1),
    nl.uint16: (0, 2**16 - 1),
    nl.uint32: (0, 2**32 - 1),
}
DTYPES = (*FORMATS, *LIMITS, nl.bool_)  # of a tile


def stored(values: Any, dtype: Any) -> Any:
    """float64 -> what a tile of the dtype keeps of it: nearest, ties to even; integers saturate."""
    values = np.asarray(values, np.float64)
    if dtype in LIMITS:
        return np.clip(np.where(np.isnan(values), 0, np.rint(values)), *LIMITS[dtype])
    if dtype == nl.bool_:
        return values != 0
    mantissa, least, largest, beyond = FORMATS[dtype]
    unit = 2.0 ** (np.maximum(np.frexp(values)[1] - 1, least) - mantissa)
    rounded = np.rint(values / unit) * unit
    return np.where(abs(rounded) > largest, np.copysign(beyond, values), rounded)


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
