"""What the functions of the engines mean, in float64."""

import math
from typing import Any

import numpy as np

from tests.nki.cases.base import POSITIVE, Z

erf = np.vectorize(math.erf)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def gelu(x: Any) -> Any:
    return x * (0.5 * (1 + erf(x / math.sqrt(2))))


def slope(f: Any) -> Any:
    """The derivative, as a difference."""
    return lambda x: (f(x + 1e-5) - f(x - 1e-5)) / 2e-5


FUNCTIONS64: dict[str, Any] = {
    "copy": lambda x: x,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: x**-0.5,
    "square": lambda x: x * x,
    "sigmoid": sigmoid,
    "sigmoid_dx": slope(sigmoid),
    "silu": lambda x: x * sigmoid(x),
    "silu_dx": slope(lambda x: x * sigmoid(x)),
    "softplus": lambda x: np.logaddexp(0, x),
    "tanh": np.tanh,
    "tanh_dx": slope(np.tanh),
    "relu": lambda x: np.where(x > 0, x, 0),
    "prelu": lambda x: np.where(x > 0, x, 0),
    "sign": np.sign,
    "erf": erf,
    "erf_dx": slope(erf),
    "abs": abs,
    "negative": lambda x: 0 - x,
    "arctan": np.arctan,
    "gelu": gelu,
    "gelu_dx": slope(gelu),
    "mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "gelu_apprx_tanh": lambda x: (
        x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))
    ),
    "gelu_apprx_sigmoid": lambda x: x * sigmoid(1.702 * x),
    "gelu_apprx_sigmoid_dx": slope(lambda x: x * sigmoid(1.702 * x)),
    "reciprocal": lambda x: 1 / x,
    "sin": lambda x: np.where(abs(x) <= math.pi, np.sin(x), np.nan),
    "cos": lambda x: np.sin(x + math.pi / 2),
    "tan": lambda x: np.sin(x) / np.cos(x),
    "floor": lambda x: x // 1,
    "ceil": lambda x: -(-x // 1),
    "trunc": lambda x: np.sign(x) * (abs(x) // 1),
    "logical_not": lambda x: x == 0,
}

ARGUMENTS = {  # where a function is not tried on Z
    **dict.fromkeys(("log", "sqrt", "rsqrt"), POSITIVE),
    "sin": np.clip(Z, -3.14, 3.14),
    "tan": np.clip(Z, -1.4, 1.4),
    "logical_not": np.floor(Z),
}
