"""ScalarE's functions, with scale, bias and row sums."""

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
    N,
    P,
    Y,
    Z,
    case,
    op,
)
from tests.nki.cases.functions import ARGUMENTS, FUNCTIONS64
from tests.nki.harness import Out


def step64(name: str, x: Any, operand: Any, reverse: bool) -> Any:
    if name == "bypass":
        return x
    return OPS64[name](operand, x) if reverse else OPS64[name](x, operand)


CASES = [
    *(
        case(
            f"activation-{name}",
            {"a": ARGUMENTS.get(name, Z)},
            LIKE,
            lambda t, name=name: nisa.activation(t.dst, op(name), t.a),
            lambda a, f=f: f(a),
        )
        for name, f in FUNCTIONS64.items()
    ),
    *(
        case(
            f"activation_reduce-{name}",
            {"a": ARGUMENTS.get(name, Z)},
            {"dst": LIKE, "total": Out((P, 1))},
            lambda t, name=name: nisa.activation_reduce(t.dst, op(name), t.a, nl.add, t.total),
            lambda a, f=f: (f(a), f(a).sum(1, keepdims=True)),
        )
        for name, f in FUNCTIONS64.items()
    ),
    *(
        case(
            f"activate2-{name}",
            {"a": ARGUMENTS.get(name, Z)},
            LIKE,
            lambda t, name=name: nisa.activate2(
                *(t.dst, op(name), t.a, 0.0, 0.0, nl.bypass, nl.bypass)
            ),
            lambda a, f=f: f(a),
            target="trn3",
        )
        for name, f in FUNCTIONS64.items()
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
    *(
        case(
            f"{name}-engine={engine}",
            {"a": Y},
            LIKE,
            lambda t, call=call, engine=engine: call(t, getattr(nisa.engine, engine)),
            lambda a: np.exp(a),
            target="trn3",
        )
        for name, call in {
            "activation": lambda t, engine: nisa.activation(t.dst, nl.exp, t.a, engine=engine),
            "activate2": lambda t, engine: nisa.activate2(
                *(t.dst, nl.exp, t.a, 0.0, 0.0, nl.bypass, nl.bypass), engine=engine
            ),
        }.items()
        for engine in ("scalar", "gpsimd")
    ),
    case(
        "activation_reduce-scale-and-bias",
        {"a": Y, "s": COLUMN, "b": COLUMN2},
        {"dst": LIKE, "total": Out((P, 1))},
        lambda t: nisa.activation_reduce(t.dst, nl.tanh, t.a, nl.add, t.total, bias=t.b, scale=t.s),
        lambda a, s, b: (np.tanh(a * s + b), np.tanh(a * s + b).sum(1, keepdims=True)),
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
                *(t.dst, nl.tanh, t.a),
                *((t.c, t.d) if kind == "tile" else (1.5, -0.25)),
                *(op(op0), op(op1)),
                reverse0=r0,
                reverse1=r1,
            ),
            lambda a, c, d, op0=op0, op1=op1, r0=r0, r1=r1, kind=kind: (
                lambda x, y: np.tanh(step64(op1, step64(op0, a, x, r0), y, r1))
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
