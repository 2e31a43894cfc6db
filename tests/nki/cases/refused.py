"""Calls that are refused: (rule, call, target, about), by what the instruction's page says."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl


@dataclass(frozen=True)
class Refusal:
    rule: str
    kernel: Callable[..., Any]
    inputs: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    about: str = ""


def sb(*shape: int, dtype: Any = nl.float32, buffer: Any = nl.sbuf, value: Any = None) -> Any:
    """A tile; filled unless asked otherwise."""
    tile = nl.ndarray(shape, dtype, buffer=buffer)
    if value is not False:
        nisa.memset(tile, value or (1.0 if dtype.is_float else 1))
    return tile


def ps(*shape: int, value: Any = None) -> Any:
    return sb(*shape, buffer=nl.psum, value=value)


def hbm(*shape: int, dtype: Any = nl.float32) -> Any:
    return nl.ndarray(shape, dtype, buffer=nl.shared_hbm)


def predicated(**dtypes: Any) -> None:
    kinds = {"dst": nl.float32, "src": nl.float32, "predicate": nl.uint8} | dtypes
    nisa.tensor_copy_predicated(*(sb(8, 8, dtype=kind) for kind in kinds.values()))


def selected(**given: Any) -> None:
    kinds = {"predicate": nl.uint8, "on_true": nl.float32} | given
    tiles = [sb(8, 8, dtype=kinds[name]) for name in ("predicate", "on_true")]
    nisa.select_reduce(sb(8, 8), *tiles, on_false=0.0, reduce_op=given.get("op", nl.maximum))


def transposed(rows: int, dtype: Any = nl.bfloat16) -> None:
    src = sb(rows, 32, dtype=dtype)
    dst = sb(32, rows, dtype=dtype, value=False)
    nisa.dma_transpose(dst, src, dge_mode=nisa.dge_mode.hwdge)


def products(left: Any, right: Any, dst: Any = nl.float32) -> None:
    out = sb(8, 8, dtype=dst, buffer=nl.psum, value=False)
    nisa.nc_matmul(out, sb(8, 8, dtype=left), sb(8, 8, dtype=right))


def biased(bias: Any, op: Any = nl.exp) -> None:
    nisa.activation(sb(8, 8), op, sb(8, 8), bias=bias)


def find8(columns: int, dtype: Any = nl.uint32) -> None:
    nisa.nc_find_index8(sb(8, 8, dtype=dtype), sb(8, columns), sb(8, 8))


INTS, E4, E4FN = nl.int32, nl.float8_e4m3, nl.float8_e4m3fn
RANGES = (nl.less, nl.less)
BY_INSTRUCTION = [  # what the pages of single instructions say
    ("dtype", lambda: biased(sb(8, 1, dtype=nl.tfloat32)), "trn2", "activation: tfloat32 bias"),
    ("generation", lambda: biased(sb(8, 1), nl.reciprocal), "trn1", "reciprocal with a bias"),
    ("shape", lambda: biased(sb(8, 2)), "trn2", "activation: a bias of two columns"),
    ("dtype", lambda: predicated(predicate=nl.int8), "trn2", "copy_predicated: int8"),
    ("same-dtype", lambda: predicated(src=nl.bfloat16), "trn2", "copy_predicated: bfloat16"),
    ("dtype", lambda: selected(predicate=nl.uint32), "trn2", "select_reduce: uint32"),
    ("dtype", lambda: selected(on_true=INTS), "trn2", "select_reduce: int32 values"),
    ("dtype", lambda: selected(on_true=nl.tfloat32), "trn2", "select_reduce: tfloat32"),
    ("operator", lambda: selected(op=nl.add), "trn2", "select_reduce: only the maximum"),
    (
        *("value", lambda: nisa.tensor_scalar(sb(8, 8), sb(8, 8), nl.rsqrt, 2.0), "trn2"),
        "an operand of a unary operator",
    ),
    (
        *("generation", lambda: nisa.tensor_scalar(sb(8, 8), sb(8, 8), nl.square, None), "trn2"),
        "square before gen4",
    ),
    (
        *("operator", lambda: scalar_on(nisa.engine.scalar, nl.subtract), "trn2"),
        "ScalarE multiplies and adds",
    ),
    ("operator", lambda: scalar_on(nisa.engine.gpsimd, nl.add), "trn2", "GpSimd has rsqrt"),
    ("generation", lambda: scalar_on(nisa.engine.scalar, nl.add), "trn1", "ScalarE on gen2"),
    (
        "value",
        lambda: nisa.tensor_scalar_reduce(
            sb(8, 8), sb(8, 8), nl.add, 1.0, nl.add, sb(8, 1), reverse0=True
        ),
        *("trn2", "tensor_scalar_reduce: reverse0"),
    ),
    (
        "operator",
        lambda: nisa.tensor_scalar_reduce(sb(8, 8), sb(8, 8), nl.add, 1.0, nl.subtract, sb(8, 1)),
        *("trn2", "tensor_scalar_reduce: subtract"),
    ),
    (
        "dtype",
        lambda: nisa.tensor_scalar_cumulative(
            sb(8, 8, dtype=INTS), sb(8, 8, dtype=INTS), nl.add, nl.add, 0.0
        ),
        *("trn2", "cumulative: int32"),
    ),
    ("size-limit", lambda: find8(7), "trn2", "find_index8 of 7"),
    ("size-limit", lambda: find8(16385), "trn2", "find_index8 of 16385"),
    ("dtype", lambda: find8(8, INTS), "trn2", "find_index8 into int32"),
    ("size-limit", lambda: transposed(8), "trn2", "dma_transpose: hwdge wants 16 rows"),
    ("size-limit", lambda: transposed(16, nl.float32), "trn2", "dma_transpose: hwdge, 4 bytes"),
    ("shape", lambda: nisa.dma_transpose(sb(8, 16), sb(8, 16)), "trn2", "dma_transpose: shape"),
    ("generation", lambda: products(E4FN, E4FN), "trn2", "e4m3fn before gen4"),
    ("dtype", lambda: products(E4FN, E4), "trn3", "e4m3fn with e4m3"),
    ("dtype", lambda: products(nl.bfloat16, nl.bfloat16, nl.bfloat16), "trn2", "bf16 result"),
    ("size-limit", lambda: nisa.nc_matmul(ps(8, 8), sb(8, 129), sb(8, 8)), "trn2", "129 columns"),
    ("generation", lambda: nisa.dma_copy(sb(8, 8), sb(8, 8), priority=1), "trn2", "priority"),
    (
        "engine",
        lambda: nisa.dma_copy(
            *(sb(8, 8), sb(8, 8)), dge_mode=nisa.dge_mode.hwdge, engine=nisa.engine.vector
        ),
        *("trn2", "dma_copy: hwdge on VectorE"),
    ),
    (
        "generation",
        lambda: nisa.range_select(sb(8, 8), sb(8, 8), *RANGES, sb(8, 1), sb(8, 1)),
        *("trn1", "range_select on gen2"),
    ),
    (
        "dtype",
        lambda: nisa.range_select(
            sb(8, 8), sb(8, 8), *RANGES, sb(8, 1, dtype=nl.bfloat16), sb(8, 1)
        ),
        *("trn2", "range_select: bfloat16 bounds"),
    ),
    (
        *("both-psum", lambda: fused(ps(8, 8), ps(8, 8)), "trn2"),
        "scalar_tensor_tensor",
    ),
    ("generation", lambda: nisa.core_barrier(None), "trn1", "core_barrier on gen2"),
    ("engine-buffer", lambda: nisa.memset(ps(8, 8), 0.0, nisa.engine.gpsimd), "trn2", "memset"),
    (
        "buffer",
        lambda: nisa.affine_select(sb(8, 8), [[1, 8]], 1, ps(8, 8), 0.0),
        *("trn2", "affine_select from PSUM"),
    ),
]


def scalar_on(engine: Any, op: Any) -> None:
    nisa.tensor_scalar(sb(8, 8), sb(8, 8), op, 1.0, engine=engine)


def fused(data: Any, tile: Any, scalar: Any = 1.0) -> None:
    nisa.scalar_tensor_tensor(sb(8, 8), data, nl.multiply, scalar, nl.add, tile)
