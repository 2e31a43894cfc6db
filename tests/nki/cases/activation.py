"""ScalarE's functions, with scale, bias and row sums."""

import math
from typing import Any

import numpy as np

from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from tests.nki.cases.base import (
    BF16,
    COLUMN,
    COLUMN2,
    LIKE,
    OPS64,
    POSITIVE,
    N,
    P,
    Y,
    Z,
    case,
    op,
)
from tests.nki.harness import Out


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


erf = np.vectorize(math.erf)


PHI = {"x": lambda x: 0.5 * (1 + erf(x / math.sqrt(2)))}["x"]


FUNCTIONS64: dict[str, Any] = {
    "copy": lambda x: x,
    "exp": np.exp,
    "square": lambda x: x * x,
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "softplus": lambda x: np.logaddexp(0, x),
    "tanh": np.tanh,
    "relu": lambda x: np.where(x > 0, x, 0),
    "sign": np.sign,
    "erf": erf,
    "abs": abs,
    "arctan": np.arctan,
    "gelu": lambda x: x * PHI(x),
    "mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "gelu_apprx_tanh": lambda x: (
        x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))
    ),
    "gelu_apprx_sigmoid": lambda x: x * sigmoid(1.702 * x),
    "reciprocal": lambda x: 1 / x,
    "sin": lambda x: np.where(abs(x) <= math.pi, np.sin(x), np.nan),
}


POSITIVE_FUNCTIONS64: dict[str, Any] = {
    "log": np.log,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: x**-0.5,
}


def step64(name: str, x: Any, operand: Any, reverse: bool) -> Any:
    if name == "bypass":
        return x
    return OPS64[name](operand, x) if reverse else OPS64[name](x, operand)


CASES = [
    *(
        case(
            f"activation-{name}",
            {"a": np.clip(Z, -3.14, 3.14) if name == "sin" else Z},
            LIKE,
            lambda t, name=name: nisa.activation(t.dst, op(name), t.a),
            lambda a, name=name: FUNCTIONS64[name](a),
        )
        for name in FUNCTIONS64
    ),
    *(
        case(
            f"activation-{name}",
            {"a": POSITIVE},
            LIKE,
            lambda t, name=name: nisa.activation(t.dst, op(name), t.a),
            lambda a, name=name: POSITIVE_FUNCTIONS64[name](a),
        )
        for name in POSITIVE_FUNCTIONS64
    ),
    case(
        "activation-scale-and-bias-tiles",
        {"a": Y, "s": COLUMN, "b": COLUMN2},
        LIKE,
        lambda t: nisa.activation(t.dst, nl.exp, t.a, bias=t.b, scale=t.s),
        lambda a, s, b: np.exp(a * s + b),
    ),
    case(
        "activation-bf16-bias-and-number-scale",
        {"a": Y, "b": COLUMN2.astype(BF16)},
        LIKE,
        lambda t: nisa.activation(t.dst, nl.tanh, t.a, bias=t.b, scale=-0.5),
        lambda a, b: np.tanh(a * -0.5 + b),
    ),
    case(
        "activation_reduce",
        {"a": Y},
        {"dst": Out((P, N), nl.bfloat16), "total": Out((P, 1))},
        lambda t: nisa.activation_reduce(t.dst, nl.exp, t.a, nl.add, t.total, scale=2.0),
        lambda a: (np.exp(2 * a), np.exp(2 * a).sum(1, keepdims=True)),
    ),
    case(
        "activation-reduce-continues",
        {"a": Y, "b": Z},
        {"dst": LIKE, "total": Out((P, 1))},
        lambda t: (
            nisa.activation(
                t.dst, nl.copy, t.a, reduce_op=nl.add, reduce_cmd=nisa.reduce_cmd.reset_reduce
            ),
            nisa.activation(
                *(t.dst, nl.square, t.b),
                reduce_op=nl.add,
                reduce_cmd=nisa.reduce_cmd.reduce,
                reduce_res=t.total,
            ),
        ),
        lambda a, b: (b * b, (a.sum(1) + (b * b).sum(1))[:, None]),
    ),
    case(
        "exponential",
        {"a": Y, "m": COLUMN},
        {"dst": LIKE, "total": Out((P, 1))},
        lambda t: nisa.exponential(
            t.dst, t.a, t.m, reduce_res=t.total, reduce_cmd=nisa.reduce_cmd.reset_reduce
        ),
        lambda a, m: (np.exp(a - m), np.exp(a - m).sum(1, keepdims=True)),
        target="trn3",
    ),
    *(
        case(
            f"activate2-{op0}-{op1}-{r0}-{r1}-{kind}",
            {"a": Y, "c": COLUMN2, "d": COLUMN},
            LIKE,
            lambda t, op0=op0, op1=op1, r0=r0, r1=r1, kind=kind: nisa.activate2(
                *(t.dst, nl.square, t.a),
                *((t.c, t.d) if kind == "tile" else (1.5, -0.25)),
                *(op(op0), op(op1)),
                reverse0=r0,
                reverse1=r1,
            ),
            lambda a, c, d, op0=op0, op1=op1, r0=r0, r1=r1, kind=kind: (
                lambda x, y: step64(op1, step64(op0, a, x, r0), y, r1) ** 2
            )(*((c, d) if kind == "tile" else (1.5, -0.25))),
            target="trn3",
        )
        for op0, op1 in [
            ("multiply", "add"),
            ("multiply", "subtract"),
            ("multiply", "bypass"),
            ("add", "bypass"),
            ("subtract", "bypass"),
            ("bypass", "bypass"),
        ]
        for r0 in (False, True)
        for r1 in (False, True)
        for kind in ("tile", "number")
    ),
    *(
        case(
            f"activate2-reduces-with-{name}",
            {"a": Z},
            {"dst": LIKE, "result": Out((P, 1))},
            lambda t, name=name: nisa.activate2(
                *(t.dst, nl.copy, t.a, -2.0, 0.0, nl.multiply, nl.bypass),
                reduce_op=op(name),
                reduce_res=t.result,
                reduce_cmd=nisa.reduce_cmd.reset_reduce,
            ),
            lambda a, f=f: (-2 * a, f(-2 * a, axis=1, keepdims=True)),
            target="trn3",
        )
        for name, f in {"add": np.sum, "maximum": np.max, "minimum": np.min}.items()
    ),
    *(
        case(
            f"activate2-prelu-{kind}",
            {"a": Z, "s": COLUMN},
            LIKE,
            lambda t, kind=kind: nisa.activate2(
                *(t.dst, nl.prelu, t.a, 0.0, 0.0, nl.bypass, nl.bypass),
                relu_param=t.s if kind == "tile" else 0.1,
            ),
            lambda a, s, kind=kind: np.where(a > 0, a, a * (s if kind == "tile" else 0.1)),
            target="trn3",
        )
        for kind in ("tile", "number")
    ),
]
