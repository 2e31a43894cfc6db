"""Element-wise arithmetic on VectorE and GpSimd."""

import ml_dtypes
import numpy as np

from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from tests.nki.cases.base import (
    BF16,
    COLUMN,
    COLUMN2,
    I32,
    J32,
    LIKE,
    OPS64,
    POSITIVE,
    N,
    P,
    X,
    Y,
    Z,
    case,
    normal,
    op,
    whole,
)
from tests.nki.harness import In, Out

CASES = [
    case(
        "tensor_scalar-a-number-keeps-its-24-bits",
        {"a": X},
        LIKE,
        lambda t: nisa.tensor_scalar(t.dst, t.a, nl.multiply, 0.1),
        lambda a: a * 0.1,
    ),
    *(
        case(
            f"tensor_tensor-{name}",
            {"a": POSITIVE if name == "power" else X, "b": Z},
            LIKE,
            lambda t, name=name: nisa.tensor_tensor(t.dst, t.a, t.b, op=op(name)),
            lambda a, b, name=name: OPS64[name](a, b),
        )
        for name in OPS64
    ),
    *(
        case(
            f"tensor_tensor-int-{name}",
            {"a": I32, "b": J32},
            Out((P, N), nl.int32),
            lambda t, name=name: nisa.tensor_tensor(t.dst, t.a, t.b, op=op(name)),
            lambda a, b, name=name: OPS64[name](a, b),
        )
        for name in ("add", "subtract", "multiply", "maximum", "minimum", "less")
    ),
    *(
        case(
            f"tensor_tensor-{name}",
            {"a": I32, "b": whole(P, N, low=0, high=8)},
            Out((P, N), nl.int32),
            lambda t, name=name: nisa.tensor_tensor(t.dst, t.a, t.b, op=op(name)),
            lambda a, b, f=f: np.vectorize(f)(a.astype(int), b.astype(int)),
        )
        for name, f in {
            "bitwise_and": lambda a, b: a & b,
            "bitwise_or": lambda a, b: a | b,
            "bitwise_xor": lambda a, b: a ^ b,
            "left_shift": lambda a, b: a << b,
            "right_shift": lambda a, b: a >> b,
        }.items()
    ),
    case(
        "tensor_tensor-int32-beyond-2^24-is-exact-on-gpsimd",
        {"a": I32 + 2**25, "b": J32},
        Out((P, N), nl.int32),
        lambda t: nisa.tensor_tensor(t.dst, t.a, t.b, op=nl.add),
        lambda a, b: a + b,
    ),
    case(
        "tensor_tensor-psum-operand-bf16-result",
        {"a": In(X, nl.psum), "b": Y.astype(BF16)},
        Out((P, N), nl.bfloat16),
        lambda t: nisa.tensor_tensor(t.dst, t.a, t.b, op=nl.add),
        lambda a, b: a + b,
    ),
    case(
        "tensor_tensor-broadcast-view",
        {"a": normal(P, 5), "b": normal(P, 5, 8)},
        Out((P, 5, 8)),
        lambda t: nisa.tensor_tensor(t.dst, t.a.expand_dim(2).broadcast(2, 8), t.b, op=nl.subtract),
        lambda a, b: a[:, :, None] - b,
    ),
    *(
        case(
            f"tensor_scalar-reverse0={r0}-reverse1={r1}-{kind}",
            {"a": POSITIVE, "c": COLUMN, "d": COLUMN2},
            LIKE,
            lambda t, r0=r0, r1=r1, kind=kind: nisa.tensor_scalar(
                *(t.dst, t.a, nl.subtract, t.c if kind == "tile" else 2.5),
                reverse0=r0,
                op1=nl.divide,
                operand1=t.d if kind == "tile" else 3.0,
                reverse1=r1,
            ),
            lambda a, c, d, r0=r0, r1=r1, kind=kind: (
                lambda s, e: (lambda v: e / v if r1 else v / e)(s - a if r0 else a - s)
            )(*((c, d) if kind == "tile" else (2.5, 3.0))),
        )
        for r0 in (False, True)
        for r1 in (False, True)
        for kind in ("tile", "number")
    ),
    case(
        "tensor_scalar-bitwise",
        {"a": I32},
        Out((P, N), nl.int32),
        lambda t: nisa.tensor_scalar(t.dst, t.a, nl.bitwise_and, 15, op1=nl.left_shift, operand1=2),
        lambda a: (a.astype(int) & 15) << 2,
    ),
    *(
        case(
            f"tensor_scalar-{'-'.join(names)}-on-{engine}",
            {"a": POSITIVE},
            LIKE,
            lambda t, engine=engine, names=names, values=values: nisa.tensor_scalar(
                *(t.dst, t.a, op(names[0]), values[0]),
                op1=op(names[1]) if len(names) > 1 else None,
                operand1=values[1] if len(names) > 1 else None,
                engine=getattr(nisa.engine, engine),
            ),
            meaning,
        )
        for engine, names, values, meaning in [
            ("scalar", ("multiply", "add"), (3.0, -2.0), lambda a: 3 * a - 2),
            ("scalar", ("multiply",), (3.0,), lambda a: 3 * a),
            ("scalar", ("add",), (-2.0,), lambda a: a - 2),
            ("vector", ("subtract", "divide"), (3.0, -2.0), lambda a: (a - 3) / -2),
            ("vector", ("rsqrt",), (None,), lambda a: a**-0.5),
            ("gpsimd", ("rsqrt",), (0,), lambda a: a**-0.5),
        ]
    ),
    case(
        "tensor_scalar-without-op1",
        {"a": X},
        LIKE,
        lambda t: nisa.tensor_scalar(t.dst, t.a, nl.multiply, -2.0),
        lambda a: a * -2,
    ),
    case(
        "scalar_tensor_tensor-a bfloat16 column",
        {"a": X, "c": COLUMN.astype(ml_dtypes.bfloat16), "b": Z},
        LIKE,
        lambda t: nisa.scalar_tensor_tensor(t.dst, t.a, nl.multiply, t.c, nl.add, t.b),
        lambda a, c, b: a * c + b,
    ),
    *(
        case(
            f"scalar_tensor_tensor-reverse0={r0}-reverse1={r1}",
            {"a": X, "c": COLUMN, "b": Z},
            LIKE,
            lambda t, r0=r0, r1=r1: nisa.scalar_tensor_tensor(
                *(t.dst, t.a, nl.subtract, t.c, nl.divide, t.b), reverse0=r0, reverse1=r1
            ),
            lambda a, c, b, r0=r0, r1=r1: (lambda v: b / v if r1 else v / b)(
                c - a if r0 else a - c
            ),
        )
        for r0 in (False, True)
        for r1 in (False, True)
    ),
    case(
        "reciprocal",
        {"a": X},
        LIKE,
        lambda t: nisa.reciprocal(t.dst, t.a),
        lambda a: 1 / a,
    ),
]
