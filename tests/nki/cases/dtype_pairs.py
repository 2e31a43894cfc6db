"""Every dtype of an input with every dtype of an output: rounding, saturation, exact integers.

Values stand on the partitions and are so short that float32 computes with them exactly: what is
compared is the rounding of the write alone, and exactly.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from tests.nki.cases.base import DTYPES, FORMATS, LIMITS, case, stored
from tests.nki.harness import In, Out

FRACTION = 0.375
WHOLE = [0, 1, -1, 2, -2, 3, 5, -7, 8, 9, 13, -20, 52, -100, 127, 200, -300, 1000, 70000, -(2**30)]
PARTS = [0.5, 1.5, -0.5, 2.5, -2.5, 2**-6, 3 * 2.0**-9, 2.0**-17, 2.0**40, -(2.0**40)]
INTEGERS = (*LIMITS, nl.bool_)
LIMITS16 = (nl.int8, nl.int16, nl.uint8, nl.uint16)
SELECTED = (*(kind for kind in FORMATS if kind != nl.tfloat32), *LIMITS16, nl.bool_)
NARROW = tuple(dtype for dtype in DTYPES if dtype not in (nl.int32, nl.uint32))


def array(dtype: Any) -> Any:
    """The values that the dtype keeps, (P, 1)."""
    kept = stored(WHOLE + (PARTS if dtype in FORMATS else [2**30]), dtype)
    return np.where(np.isfinite(kept), kept, 1).astype(dtype.dtype).reshape(-1, 1)


def tile(dtype: Any) -> In:
    return In(array(dtype), dtype=dtype)


def columns(rows: int) -> dict[str, Any]:
    return {"scale": np.full((rows, 1), FRACTION, np.float32)}


def total(rows: int) -> Any:
    return nl.ndarray((rows, 1), nl.float32)


Body = Callable[[Any, Any, Any], Any]  # dst, data, scale (P, 1): dst = data * FRACTION
PRODUCTS: dict[str, tuple[Body, dict[str, Any]]] = {
    "tensor_scalar": (lambda d, a, s: nisa.tensor_scalar(d, a, nl.multiply, FRACTION), {}),
    "tensor_tensor": (lambda d, a, s: nisa.tensor_tensor(d, a, s, nl.multiply), {}),
    "scalar_tensor_tensor": (
        lambda d, a, s: nisa.scalar_tensor_tensor(d, a, nl.multiply, 1.0, nl.multiply, s),
        {},
    ),
    "activation": (lambda d, a, s: nisa.activation(d, nl.copy, a, scale=s), {}),
    "activation_reduce": (
        lambda d, a, s: nisa.activation_reduce(
            d, nl.copy, a, nl.add, total(d.shape[0]), scale=FRACTION
        ),
        {},
    ),
    "activate2": (
        lambda d, a, s: nisa.activate2(d, nl.copy, a, s, 0.0, nl.multiply, nl.bypass),
        {"target": "trn3"},
    ),
    "tensor_tensor_scan": (
        lambda d, a, s: nisa.tensor_tensor_scan(d, s, a, 1.0, nl.multiply, nl.multiply),
        {},
    ),
    "tensor_scalar_reduce": (
        lambda d, a, s: nisa.tensor_scalar_reduce(d, a, nl.multiply, FRACTION, nl.add),
        {},
    ),
    "tensor_scalar_cumulative": (
        lambda d, a, s: nisa.tensor_scalar_cumulative(d, a, nl.multiply, nl.maximum, FRACTION),
        {},
    ),
}
COPIES: dict[str, Body] = {  # dst = data
    "tensor_copy": lambda d, a, s: nisa.tensor_copy(d, a),
    "dma_copy": lambda d, a, s: nisa.dma_copy(d, a),
    "tensor_reduce": lambda d, a, s: nisa.tensor_reduce(d, nl.maximum, a, axis=1),
    "affine_select": lambda d, a, s: nisa.affine_select(d, [[1, 1]], 0, a, 0.0, cmp_op=nl.equal),
}


def row(op: str, body: Body, source: Any, targets: Any, f: Any, **options: Any) -> Any:
    data = array(source)
    return case(
        f"{op}-of-{source}",
        {"a": tile(source), **columns(len(data))},
        {str(target): Out(data.shape, target) for target in targets},
        lambda t: [body(getattr(t, str(target)), t.a, t.scale) for target in targets],
        lambda a, s: tuple(stored(f(a), target) for target in targets),
        exact=True,
        **options,
    )


def dtypes_of(op: str) -> Any:
    return NARROW if op == "tensor_scalar_cumulative" else DTYPES


def through32(a: Any) -> Any:
    return stored(a, nl.float32)


def moves(dtype: Any) -> list[Any]:
    """Rows of what moves elements without a change, in the one dtype of both ends."""
    data, kind = array(dtype).reshape(1, -1), {"target": "trn3", "exact": True}
    n = data.shape[1]
    flat, line = {"a": In(data, dtype=dtype)}, Out((1, n), dtype)
    places = np.arange(n, dtype=np.uint32)[::-1].reshape(1, n)
    groups = np.repeat(data[:, :16], 16, axis=0)
    order = np.arange(16, dtype=np.uint16)[::-1].reshape(16, 1)
    return [
        case(
            f"nc_n_gather-{dtype}",
            {**flat, "i": places},
            line,
            lambda t: nisa.nc_n_gather(t.dst, t.a, t.i),
            lambda a, i: a[:, ::-1],
            **kind,
        ),
        case(
            f"local_gather-{dtype}",
            {"a": In(groups, dtype=dtype), "i": order},
            Out((16, 16), dtype),
            lambda t: nisa.local_gather(t.dst, t.a, t.i),
            lambda a, i: a[:, ::-1],
            **kind,
        ),
        case(
            f"nc_stream_shuffle-{dtype}",
            flat,
            Out((20, n), dtype),
            lambda t: nisa.nc_stream_shuffle(t.dst, t.a, [0] * 32),
            lambda a: np.repeat(a, 20, axis=0),
            **kind,
        ),
        case(
            f"nc_transpose-{dtype}",
            flat,
            Out((n, 1), dtype),
            lambda t: nisa.nc_transpose(t.dst, t.a, engine=nisa.engine.vector),
            lambda a: a.T,
            **kind,
        ),
        case(
            f"nc_transpose-psum-{dtype}",
            flat,
            Out((n, 1), dtype, buffer=nl.psum),
            lambda t: nisa.nc_transpose(t.dst, t.a, engine=nisa.engine.tensor),
            lambda a: a.T,
            **kind,
        ),
        case(
            f"dma_transpose-{dtype}",
            flat,
            Out((n, 1), dtype),
            lambda t: nisa.dma_transpose(t.dst, t.a),
            lambda a: a.T,
            **kind,
        ),
        *(
            case(
                f"tensor_copy_predicated-{dtype}-{predicate}",
                {**flat, "p": (np.arange(n).reshape(1, n) % 3).astype(predicate.dtype)},
                Out((1, n), dtype, initial=1.0 if dtype in FORMATS else 1),
                lambda t: nisa.tensor_copy_predicated(t.dst, t.a, t.p),
                lambda a, p: np.where(p != 0, a, 1),
                **kind,
            )
            for predicate in (nl.uint8, nl.uint16, nl.uint32)
        ),
    ]


def selects(source: Any) -> list[Any]:
    data = array(source)
    return [
        case(
            f"select_reduce-of-{source}-where-{predicate}",
            {"a": tile(source), "p": (np.arange(len(data)).reshape(-1, 1) % 3).astype(kind)},
            {str(target): Out(data.shape, target) for target in DTYPES},
            lambda t: [
                nisa.select_reduce(getattr(t, str(target)), t.p, t.a, -2.5) for target in DTYPES
            ],
            lambda a, p: tuple(stored(np.where(p != 0, a, -2.5), target) for target in DTYPES),
            exact=True,
        )
        for predicate in (nl.int8, nl.uint8, nl.int16, nl.uint16)
        for kind in (predicate.dtype,)
    ]


CASES = [
    *(
        row(op, body, source, dtypes_of(op), lambda a: a * FRACTION, **options)
        for op, (body, options) in PRODUCTS.items()
        for source in dtypes_of(op)
    ),
    *(row(op, body, source, DTYPES, through32) for op, body in COPIES.items() for source in DTYPES),
    *(
        row(
            "range_select",
            lambda d, a, s: nisa.range_select(d, a, nl.less, nl.less, s, s),
            *(source, DTYPES, lambda a: a),
        )
        for source in FORMATS
    ),
    *(one for dtype in DTYPES for one in moves(dtype)),
    *(one for source in SELECTED for one in selects(source)),
    *(
        case(
            f"memset-{dtype}-of-{value}",
            {},
            Out((4, 2), dtype),
            lambda t, value=value: nisa.memset(t.dst, value),
            lambda value=value, dtype=dtype: np.full((4, 2), stored(value, dtype)),
            exact=True,
        )
        for dtypes, values in (
            (FORMATS, (0.0, -1.0, 0.375, 1e5, 3e38)),
            (INTEGERS, (0, -1, 100, 300, 2**31 - 1, 2**32 - 1)),
        )
        for dtype in dtypes
        for value in values
    ),
    *(
        case(
            f"iota-{dtype}",
            {},
            Out((4, 3), dtype),
            lambda t: nisa.iota(t.dst, [[50, 3]], offset=-3, channel_multiplier=200),
            lambda dtype=dtype: stored(-3 + 200 * np.arange(4)[:, None] + 50 * np.arange(3), dtype),
            exact=True,
        )
        for dtype in DTYPES
    ),
    case(
        "tensor_copy-what-is-not-finite-to-integers",
        {"a": np.array([[np.nan, np.inf, -np.inf]], np.float32)},
        {str(dtype): Out((1, 3), dtype) for dtype in LIMITS},
        lambda t: [nisa.tensor_copy(getattr(t, str(dtype)), t.a) for dtype in LIMITS],
        lambda a: tuple(stored(a, dtype) for dtype in LIMITS),
    ),
]
