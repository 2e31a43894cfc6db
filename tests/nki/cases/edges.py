"""Immediates at their edges, and large and small magnitudes, compared exactly."""

from collections.abc import Callable
from typing import Any

import numpy as np

from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from tests.nki.cases.base import OPS64, case, op, stored
from tests.nki.harness import In, Out

IMMEDIATES = (0, 0.0, -1, -1.0, 0.1, 1e30, -1e30, 2**24 + 1, 1e-30)
LARGE = np.array([[3e38, -3e38, 1e30, 2**24 + 2, -(2**24) - 2, 1.0, -0.5, 1e-30, 3e-38]], "f4")
OTHER = LARGE[:, [1, 1, 3, 0, 5, 8, 2, 7, 0]]
ROW = Out(LARGE.shape)
BIG = np.array([[2**31 - 1, -(2**31), 2**24 + 1, -(2**24) - 3, 7]], np.int32)
UNITS = np.array([[0, 0, 1, -2, 5]], np.int32)


def f32(x: Any) -> Any:
    return stored(x, nl.float32)


Row = tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]
TAKES: dict[str, Row] = {  # instruction and argument -> the call, what it computes
    "tensor_scalar-operand0": (
        lambda t, v: nisa.tensor_scalar(t.dst, t.a, nl.multiply, v),
        lambda a, v: a * v,
    ),
    "tensor_scalar-operand0-reversed": (
        lambda t, v: nisa.tensor_scalar(t.dst, t.a, nl.subtract, v, reverse0=True),
        lambda a, v: v - a,
    ),
    "tensor_scalar-operand1": (
        lambda t, v: nisa.tensor_scalar(t.dst, t.a, nl.multiply, 1.0, op1=nl.add, operand1=v),
        lambda a, v: a + v,
    ),
    "scalar_tensor_tensor-operand0": (
        lambda t, v: nisa.scalar_tensor_tensor(t.dst, t.a, nl.subtract, v, nl.maximum, t.a),
        lambda a, v: np.maximum(f32(a - v), a),
    ),
    "tensor_tensor_scan-initial": (
        lambda t, v: nisa.tensor_tensor_scan(
            t.dst[:, 0:1], t.a[:, 5:6], t.a[:, 6:7], v, nl.multiply, nl.add
        ),
        lambda a, v: f32(v) + a[:, 6:7],
    ),
    "tensor_scalar_reduce-operand0": (
        lambda t, v: nisa.tensor_scalar_reduce(t.dst, t.a, nl.subtract, v, nl.maximum),
        lambda a, v: a - v,
    ),
    "tensor_scalar_cumulative-imm0": (
        lambda t, v: nisa.tensor_scalar_cumulative(t.dst, t.a, nl.multiply, nl.maximum, v),
        lambda a, v: np.maximum.accumulate(f32(a * v), 1),
    ),
    "tensor_scalar_cumulative-imm1": (
        lambda t, v: nisa.tensor_scalar_cumulative(
            *(t.dst, t.a, nl.multiply, nl.minimum, 1.0, v), reduce_cmd=nisa.reduce_cmd.load_reduce
        ),
        lambda a, v: np.minimum(np.minimum.accumulate(a, 1), v),
    ),
    "activation-scale": (
        lambda t, v: nisa.activation(t.dst, nl.copy, t.a, scale=v),
        lambda a, v: a * v,
    ),
    "activation-bias": (
        lambda t, v: nisa.activation(t.dst, nl.copy, t.a, bias=v),
        lambda a, v: a + v,
    ),
    "activate2-imm0": (
        lambda t, v: nisa.activate2(t.dst, nl.copy, t.a, v, 9.0, nl.subtract, nl.bypass),
        lambda a, v: a - v,
    ),
    "activate2-imm1": (
        lambda t, v: nisa.activate2(t.dst, nl.copy, t.a, 1.0, v, nl.multiply, nl.subtract),
        lambda a, v: a - v,
    ),
    "select_reduce-on_false": (
        lambda t, v: nisa.select_reduce(t.dst, t.p, t.a, v),
        lambda a, v: np.where(np.arange(9) % 2, a, v),
    ),
    "affine_select-on_false_value": (
        lambda t, v: nisa.affine_select(t.dst, [[1, 9]], 0, t.a, v, cmp_op=nl.less, offset=-4),
        lambda a, v: np.where(np.arange(9) < 4, a, v),
    ),
    "nc_match_replace8-imm": (
        lambda t, v: nisa.nc_match_replace8(t.dst, t.a, t.a[:, 0:8], v),
        lambda a, v: np.where(np.arange(9) < 8, v, a),
    ),
    "tensor_copy_predicated-src": (
        lambda t, v: nisa.tensor_copy_predicated(t.dst, v, t.p),
        lambda a, v: np.where(np.arange(9)[None] % 2, v, -7),
    ),
}


def edge(name: str, row: Row, value: Any) -> Any:
    call, meaning = row
    first = "scan" in name
    out = {"dst": Out((1, 1) if first else LARGE.shape, initial=-7.0)}
    return case(
        f"{name}={value!r}",
        {"a": LARGE, "p": (np.arange(9).reshape(1, 9) % 2).astype(np.uint8)},
        out,
        lambda t: call(t, value),
        lambda a, p: f32(meaning(a, f32(value))),
        exact=True,
        target="trn3",
    )


CASES = [
    *(edge(name, row, value) for name, row in TAKES.items() for value in IMMEDIATES),
    *(
        case(
            f"tensor_tensor-large-{name}",
            {"a": LARGE, "b": OTHER},
            ROW,
            lambda t, name=name: nisa.tensor_tensor(t.dst, t.a, t.b, op(name)),
            lambda a, b, name=name: f32(OPS64[name](a, b)),
            exact=True,
        )
        for name in OPS64
        if name not in ("power", "mod", "fmod")
    ),
    *(
        case(
            f"tensor_tensor-{name}-of-integers-on-{engine}",
            {"a": BIG, "b": UNITS},
            Out(BIG.shape, nl.int32),
            lambda t, name=name, engine=engine: nisa.tensor_tensor(
                t.dst, t.a, t.b, op(name), engine=getattr(nisa.engine, engine)
            ),
            lambda a, b, name=name, keep=keep: stored(
                keep(OPS64[name](keep(a), keep(b))), nl.int32
            ),
        )
        for engine, keep in (("vector", f32), ("gpsimd", lambda x: x * 1.0))
        for name in ("maximum", "minimum", "add")
    ),
    *(
        case(
            f"iota-offset={offset}-multiplier={multiplier}-step={step}",
            {},
            Out((3, 4), nl.int32),
            lambda t, o=offset, m=multiplier, s=step: nisa.iota(t.dst, [[s, 4]], o, m),
            lambda o=offset, m=multiplier, s=step: o + m * np.arange(3)[:, None] + s * np.arange(4),
        )
        for offset, multiplier, step in [(0, 0, 0), (-1, -1, -1), (2**30 + 1, 2**24, 3), (5, 0, -2)]
    ),
    *(
        case(
            f"affine_select-{dtype}-on_false={value}",
            {"a": In(np.array([[7, 1, 100, 3]], dtype.dtype))},
            Out((1, 4), dtype),
            lambda t, value=value: nisa.affine_select(
                t.dst, [[1, 4]], 0, t.a, value, cmp_op=nl.greater, offset=-1
            ),
            lambda a, value=value, dtype=dtype: np.where(np.arange(4) > 1, a, stored(value, dtype)),
        )
        for dtype in (nl.uint8, nl.int16, nl.int32)
        for value in (0.0, -1.0, 1.5, 1e30, -np.inf)
    ),
    *(
        case(
            f"exponential-max_value={value!r}",
            {"a": np.array([[-1.0, 0.0, 1.0, 80.0, -80.0, -1e30]], np.float32)},
            Out((1, 6)),
            lambda t, value=value: nisa.exponential(t.dst, t.a, value),
            lambda a, value=value: f32(np.exp(a - value)),
            target="trn3",
        )
        for value in (0, -1.0, 80.0, 1e30)
    ),
    *(
        case(
            f"affine_select-pattern-{pattern}-multiplier={multiplier}",
            {"a": np.arange(1, 25, dtype=np.float32).reshape(2, 12)},
            Out((2, 12)),
            lambda t, pattern=pattern, m=multiplier: nisa.affine_select(
                t.dst, pattern, m, t.a, 0.0, cmp_op=nl.greater_equal
            ),
            lambda a, pattern=pattern, m=multiplier: np.where(
                m * np.arange(2)[:, None]
                + (pattern[0][0] * np.arange(4)[:, None] + pattern[1][0] * np.arange(3)).reshape(-1)
                >= 0,
                *(a, 0),
            ),
        )
        for pattern in ([[-1, 4], [1, 3]], [[2, 4], [-3, 3]])
        for multiplier in (0, -2, 3)
    ),
    *(
        case(
            f"{name}-of-large-arguments",
            {"a": np.array([[1e30, 1e4, 100.0, 0.0, -100.0, -1e4, -1e30]], np.float32)},
            Out((1, 7)),
            lambda t, name=name: nisa.activation(t.dst, op(name.split("-")[1]), t.a),
            lambda a, limit=limit: limit(a),
        )
        for name, limit in {
            "activation-sigmoid": lambda x: (
                np.where(x > 0, 1 - np.exp(-abs(x)), np.exp(x)) * np.where(x == 0, 0.5, 1)
            ),
            "activation-silu": lambda x: np.where(x > 0, x, 0),
            "activation-gelu": lambda x: np.where(x > 0, x, 0),
            "activation-mish": lambda x: np.where(x > 0, x, 0),
            "activation-softplus": lambda x: np.where(x == 0, np.log(2), np.where(x > 0, x, 0)),
            "activation-tanh": np.sign,
            "activation-erf": np.sign,
            "activation-silu_dx": lambda x: np.where(x == 0, 0.5, x > 0),
            "activation-gelu_dx": lambda x: np.where(x == 0, 0.5, x > 0),
            "activation-gelu_apprx_tanh": lambda x: np.where(x > 0, x, 0),
            "activation-gelu_apprx_sigmoid": lambda x: np.where(x > 0, x, 0),
            "activation-sigmoid_dx": lambda x: np.where(x == 0, 0.25, 0),
            "activation-exp": lambda x: np.where(
                x > 80, np.inf, np.where(x == 0, 1, np.where(x < -99, 0, np.nan))
            ),
        }.items()
    ),
]
