"""Every operator that an argument of an instruction takes, on small whole numbers."""

from functools import partial
from typing import Any

import numpy as np

from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from tests.nki.cases.base import OPS64, case, op, stored, whole
from tests.nki.cases.functions import FUNCTIONS64
from tests.nki.cases.reductions import scan64
from tests.nki.harness import Out

R, C = 16, 12
A = whole(R, C, low=-9, high=10).astype(np.float32)
B = whole(R, C, low=-3, high=4).astype(np.float32)
COLUMN = whole(R, 1, low=1, high=4).astype(np.float32)
DST = Out((R, C))
UNARY = ("logical_not", "rsqrt", "abs", "square", "relu")
BITS = {
    "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or,
    "bitwise_xor": np.bitwise_xor,
}
BITWISE = BITS | {"left_shift": np.left_shift, "right_shift": np.right_shift}
INTS = {"a": whole(R, C, low=0, high=99), "i": whole(R, 1, low=0, high=4)}
WORDS = Out((R, C), nl.int32)
POWERS = {"a": whole(R, 3, low=1, high=4, dtype="f4"), "b": whole(R, 3, low=1, high=4, dtype="f4")}


def swapped(f: Any, reverse: bool) -> Any:
    return (lambda a, b: f(b, a)) if reverse else f


def bits(f: Any, reverse: bool = False) -> Any:
    return swapped(lambda a, b: f(*(np.asarray(v).astype(int) for v in (a, b))), reverse)


def rounded(f: Any) -> Any:
    """The step of a scan: its state is float32."""
    return lambda a, b: stored(f(a, b), nl.float32)


FOLDS: dict[str, Any] = {  # of the last axis
    "add": lambda a: a.sum(1),
    "multiply": lambda a: a.prod(1),
    "maximum": lambda a: a.max(1),
    "minimum": lambda a: a.min(1),
    "average": lambda a: a.mean(1),
    "subtract": lambda a: (a * (-1.0) ** np.arange(a.shape[1])[::-1]).sum(1),
}


def of_operator(name: str, f: Any, reverse: bool) -> list[Any]:
    """Rows of one binary operator, in every place that takes it."""
    g, way, fn = swapped(f, reverse), "-reversed" if reverse else "", op(name)
    row = partial(case, target="trn3")
    both = {"a": A, "b": B}
    first = [
        row(
            f"tensor_scalar-op0-{name}{way}",
            {"a": A, "c": COLUMN},
            DST,
            lambda t: nisa.tensor_scalar(t.dst, t.a, fn, t.c, reverse0=reverse),
            lambda a, c: g(a, c),
        ),
        row(
            f"tensor_scalar-op1-{name}{way}",
            {"a": A},
            DST,
            lambda t: nisa.tensor_scalar(
                t.dst, t.a, nl.add, 1.0, op1=fn, operand1=3.0, reverse1=reverse
            ),
            lambda a: g(a + 1, 3.0),
        ),
        row(
            f"scalar_tensor_tensor-op0-{name}{way}",
            both,
            DST,
            lambda t: nisa.scalar_tensor_tensor(
                t.dst, t.a, fn, 2.0, nl.maximum, t.b, reverse0=reverse
            ),
            lambda a, b: np.maximum(g(a, 2.0), b),
        ),
        row(
            f"scalar_tensor_tensor-op1-{name}{way}",
            both,
            DST,
            lambda t: nisa.scalar_tensor_tensor(
                t.dst, t.a, nl.maximum, 1.0, fn, t.b, reverse1=reverse
            ),
            lambda a, b: g(np.maximum(a, 1.0), b),
        ),
        row(
            f"tensor_tensor_scan-op0-{name}{way}",
            POWERS,
            Out((R, 3)),
            lambda t: nisa.tensor_tensor_scan(
                t.dst, t.a, t.b, 2.0, fn, nl.minimum, reverse0=reverse
            ),
            lambda a, b: scan64(a, b, 2.0, rounded(f), np.minimum, reverse, False),
        ),
        row(
            f"tensor_tensor_scan-op1-{name}{way}",
            POWERS,
            Out((R, 3)),
            lambda t: nisa.tensor_tensor_scan(
                t.dst, t.a, t.b, 2.0, nl.minimum, fn, reverse1=reverse
            ),
            lambda a, b: scan64(a, b, 2.0, np.minimum, rounded(f), False, reverse),
        ),
    ]
    if reverse:
        return first
    return [
        *first,
        row(
            f"tensor_scalar_cumulative-op0-{name}",
            {"a": A, "c": COLUMN},
            DST,
            lambda t: nisa.tensor_scalar_cumulative(t.dst, t.a, fn, nl.maximum, t.c),
            lambda a, c: np.maximum.accumulate(f(a, c) * 1.0, 1),
        ),
        row(
            f"tensor_scalar_reduce-op0-{name}",
            {"a": A, "c": COLUMN},
            {"dst": DST, "total": Out((R, 1))},
            lambda t: nisa.tensor_scalar_reduce(t.dst, t.a, fn, t.c, nl.minimum, t.total),
            lambda a, c: (f(a, c), (f(a, c) * 1.0).min(1, keepdims=True)),
        ),
    ]


CASES = [
    *(
        row
        for name, f in OPS64.items()
        for reverse in (False, True)
        for row in of_operator(name, f, reverse)
    ),
    *(
        case(
            f"tensor_scalar-{place}-{name}",
            {"a": abs(A) + 1 if name == "rsqrt" else A},
            DST,
            lambda t, place=place, name=name: (
                nisa.tensor_scalar(t.dst, t.a, op(name), None)
                if place == "op0"
                else nisa.tensor_scalar(t.dst, t.a, nl.multiply, 2.0, op1=op(name))
            ),
            lambda a, f=FUNCTIONS64[name], place=place: f(a if place == "op0" else 2 * a),
            target="trn3",
        )
        for name in UNARY
        for place in ("op0", "op1")
    ),
    *(
        case(
            f"tensor_scalar-{place}-{name}{'-reversed' if reverse else ''}-{kind}",
            INTS,
            WORDS,
            lambda t, place=place, name=name, reverse=reverse, kind=kind: (
                nisa.tensor_scalar(
                    *(t.dst, t.a, op(name), t.i if kind == "tile" else 3), reverse0=reverse
                )
                if place == "op0"
                else nisa.tensor_scalar(
                    *(t.dst, t.a, nl.bitwise_and, 7),
                    op1=op(name),
                    operand1=t.i if kind == "tile" else 3,
                    reverse1=reverse,
                )
            ),
            lambda a, i, place=place, f=f, reverse=reverse, kind=kind: bits(f, reverse)(
                a if place == "op0" else bits(np.bitwise_and)(a, 7), i if kind == "tile" else 3
            ),
        )
        for name, f in BITWISE.items()
        for place in ("op0", "op1")
        for reverse in (False, True)
        for kind in ("tile", "number")
        if not (reverse and place == "op0" and "shift" in name)
    ),
    *(
        case(
            f"tensor_scalar-invert-{place}",
            {"a": INTS["a"]},
            WORDS,
            lambda t, place=place: (
                nisa.tensor_scalar(t.dst, t.a, nl.invert, None)
                if place == "op0"
                else nisa.tensor_scalar(t.dst, t.a, nl.bitwise_and, 7, op1=nl.invert)
            ),
            lambda a, place=place: -1 - (a if place == "op0" else a % 8),
        )
        for place in ("op0", "op1")
    ),
    *(
        case(
            f"tensor_reduce-{name}-of-integers",
            {"a": whole(R, 3, 5, low=0, high=2**31 - 1)},
            Out((R, 3), nl.int32),
            lambda t, name=name: nisa.tensor_reduce(t.dst, op(name), t.a, axis=2),
            lambda a, f=f: f.reduce(a.astype(int), axis=2),
        )
        for name, f in BITS.items()
    ),
    *(
        case(
            f"tensor_partition_reduce-{name}-of-integers",
            {"a": whole(R, C, low=0, high=2**31 - 1)},
            Out((1, C), nl.int32),
            lambda t, name=name: nisa.tensor_partition_reduce(t.dst, op(name), t.a),
            lambda a, f=f: f.reduce(a.astype(int), axis=0, keepdims=True),
        )
        for name, f in BITS.items()
    ),
    *(
        case(
            f"tensor_partition_reduce-{name}",
            {"a": POWERS["a"]},
            Out((1, 3)),
            lambda t, name=name: nisa.tensor_partition_reduce(t.dst, op(name), t.a),
            lambda a, name=name: FOLDS[name](a.T)[None],
        )
        for name in ("add", "multiply", "maximum", "minimum", "average")
    ),
    *(
        case(
            f"tensor_scalar_cumulative-op1-{name}",
            {"a": POWERS["a"]},
            Out((R, 3)),
            lambda t, name=name: nisa.tensor_scalar_cumulative(
                t.dst, t.a, nl.subtract, op(name), 5.0
            ),
            lambda a, name=name: np.stack([FOLDS[name](a[:, : i + 1] - 5) for i in range(3)], 1),
        )
        for name in ("add", "multiply", "maximum", "minimum", "subtract")
    ),
    *(
        case(
            f"range_select-{first}-{second}",
            {"a": A, "lo": COLUMN, "hi": COLUMN + 4},
            DST,
            lambda t, first=first, second=second: nisa.range_select(
                t.dst, t.a, op(first), op(second), t.lo, t.hi
            ),
            lambda a, lo, hi, first=first, second=second: np.where(
                OPS64[first](np.arange(C), lo) & OPS64[second](np.arange(C), hi),
                *(a, np.finfo(np.float32).min),
            ),
            exact=True,
        )
        for first in ("equal", "greater", "greater_equal", "less", "less_equal")
        for second in ("equal", "greater", "greater_equal", "less", "less_equal")
    ),
]
