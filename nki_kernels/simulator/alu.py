"""The operators that `op=`, `op0=`, `reduce_op=`, `cmp_op=` take, in float32 or on integers.

Comparisons and logic give 1 or 0 in the operands' dtype. Bitwise operators work on integers as they
are stored.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nki_kernels.simulator.context import refuse
from nki_kernels.simulator.dtypes import Array


@dataclass(frozen=True)
class Operator:
    """An operator of the engines.

    `kind`: arithmetic, compare, logical, bitwise, function, bypass or average.
    """

    name: str
    arity: int
    kind: str
    compute: Callable[..., Array]

    def __call__(self, *operands: Any) -> Array:
        result = self.compute(*operands)
        return result.astype(np.asarray(operands[0]).dtype) if result.dtype == np.bool_ else result

    def reduce(self, values: Array) -> Array:
        """Over the last axis of `values` [P, N]; [P, 1]. In float32: pairwise for sums."""
        assert isinstance(self.compute, np.ufunc)
        result: Array = self.compute.reduce(values, axis=-1, keepdims=True, dtype=values.dtype)
        return result / np.float32(values.shape[-1]) if self.kind == "average" else result


def _by_size(larger: Any) -> Callable[[Array, Array], Array]:
    """The operand of the larger (or smaller) magnitude with its sign; the second of equal ones."""
    return lambda a, b: np.where(larger(np.abs(a), np.abs(b)), a, b)


def _erf(x: Array) -> Array:
    flat = np.fromiter(map(math.erf, x.reshape(-1).tolist()), np.float64, x.size)
    return flat.reshape(x.shape)


def _sigmoid(x: Array) -> Array:
    result: Array = 1 / (1 + np.exp(-x))
    return result


def _softplus(x: Array) -> Array:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _normal(x: Array) -> Any:
    return np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _gelu_tanh(x: Array) -> Any:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _sin(x: Array) -> Array:
    """Inside [-pi, pi] the sine; outside the cubic that touches it at the border.

    The vendor's simulator extrapolates a cubic; which one is not published. Ours is the Taylor
    polynomial of third order at +-pi.
    """
    beyond = np.sign(x) * (np.abs(x) - math.pi)
    return np.where(np.abs(x) <= math.pi, np.sin(x), beyond**3 / 6 - beyond)


def _mish(x: Array) -> Array:
    return x * np.tanh(_softplus(x))


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "power": np.power,
    "mod": np.mod,
    "fmod": np.fmod,
    "abs_max": _by_size(np.greater),
    "abs_min": _by_size(np.less),
}
_COMPARE = {
    "equal": np.equal,
    "not_equal": np.not_equal,
    "greater": np.greater,
    "less": np.less,
    "greater_equal": np.greater_equal,
    "less_equal": np.less_equal,
}
_LOGICAL = {
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
}
_BITWISE = {
    "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or,
    "bitwise_xor": np.bitwise_xor,
    "left_shift": np.left_shift,
    "right_shift": np.right_shift,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "copy": lambda x: x,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "square": np.square,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "reciprocal": lambda x: 1 / x,
    "abs": np.abs,
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "softplus": _softplus,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "sign": np.sign,
    "mish": _mish,
    "sin": _sin,
    "cos": np.cos,
    "tan": np.tan,
    "arctan": np.arctan,
    "erf": _erf,
    "gelu": lambda x: x * (0.5 + 0.5 * _erf(x / math.sqrt(2))),
    "gelu_apprx_tanh": _gelu_tanh,
    "gelu_apprx_sigmoid": lambda x: x * _sigmoid(1.702 * x),
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "negative": np.negative,
    "silu_dx": lambda x: _sigmoid(x) * (1 + x * (1 - _sigmoid(x))),
    "gelu_dx": lambda x: 0.5 + 0.5 * _erf(x / math.sqrt(2)) + x * _normal(x),
    "gelu_apprx_sigmoid_dx": lambda x: (
        _sigmoid(1.702 * x) * (1 + 1.702 * x * (1 - _sigmoid(1.702 * x)))
    ),
    "erf_dx": lambda x: 2 / math.sqrt(math.pi) * np.exp(-x * x),
    "tanh_dx": lambda x: 1 - np.tanh(x) ** 2,
    "sigmoid_dx": lambda x: _sigmoid(x) * (1 - _sigmoid(x)),
    "logical_not": np.logical_not,
    "prelu": lambda x, slope=0.0: np.where(x > 0, x, slope * x),
}


def _float32(compute: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """In float64 and rounded once: the engine's table is not published, the exact value is."""
    return lambda x: np.asarray(compute(np.asarray(x, np.float64))).astype(np.float32)


_SLOW = {"erf", "gelu", "gelu_dx", "erf_dx", "mish", "gelu_apprx_tanh", "sin", "softplus"}

OPERATORS = {
    **{name: Operator(name, 2, "arithmetic", f) for name, f in _ARITHMETIC.items()},
    **{name: Operator(name, 2, "compare", f) for name, f in _COMPARE.items()},
    **{name: Operator(name, 2, "logical", f) for name, f in _LOGICAL.items()},
    **{name: Operator(name, 2, "bitwise", f) for name, f in _BITWISE.items()},
    **{
        name: Operator(name, 1, "function", _float32(f) if name in _SLOW else f)
        for name, f in _FUNCTIONS.items()
    },
    "invert": Operator("invert", 1, "bitwise", np.invert),
    "bypass": Operator("bypass", 1, "bypass", lambda x: x),
    "average": Operator("average", 2, "average", np.add),  # of a reduction over partitions
}
_NUMPY_NAMES = {"true_divide": "divide", "remainder": "mod", "absolute": "abs", "float_power": ""}


def names(*kinds: str) -> frozenset[str]:
    """The operators of some kinds."""
    return frozenset(op.name for op in OPERATORS.values() if op.kind in kinds)


ARITHMETIC, BITWISE, FUNCTIONS = names("arithmetic"), names("bitwise"), names("function")
COMPARE = names("compare")
BINARY = names("arithmetic", "compare", "logical", "bitwise") - {"invert"}
REDUCTIONS = frozenset({"add", "multiply", "maximum", "minimum"})
BIT_REDUCTIONS = frozenset({"bitwise_and", "bitwise_or", "bitwise_xor"})


def find(value: Any, argument: str, allowed: Iterable[str]) -> Operator:
    """The operator of an `nl` function; refused if the argument does not take it."""
    found = getattr(value, "operator", None)
    if isinstance(value, np.ufunc) or getattr(value, "__module__", "") == "numpy":
        name = {"max": "maximum", "amax": "maximum", "min": "minimum", "amin": "minimum"}.get(
            value.__name__, _NUMPY_NAMES.get(value.__name__, value.__name__)
        )
        refuse("numpy-operator", argument, f"nl.{name}", f"np.{value.__name__}")
        found = OPERATORS.get(name)
    if not isinstance(found, Operator) or found.name not in allowed:
        got = found.name if isinstance(found, Operator) else value
        refuse("operator", argument, f"one of nl.{', nl.'.join(sorted(allowed))}", got)
    assert isinstance(found, Operator)
    return found
