"""Dtypes that an argument does not take, and arguments that do not go together.

`TAKES` says which dtypes the documentation allows; every other dtype of a tile is refused.
"""

from collections.abc import Callable
from typing import Any

from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from tests.nki.cases.base import DTYPES, FORMATS, LIMITS
from tests.nki.cases.refused import hbm, ps, sb

FLOATS, ALL = frozenset(FORMATS), frozenset(DTYPES)
F32, U16, U32, I32 = (frozenset({kind}) for kind in (nl.float32, nl.uint16, nl.uint32, nl.int32))
CMD = nisa.reduce_cmd
BF, F16 = nl.bfloat16, nl.float16


def scaled(kind: Any) -> None:
    nisa.activation(sb(8, 8), nl.exp, sb(8, 8), scale=sb(8, 1, dtype=kind))


def of_scalar(kind: Any, **more: Any) -> None:
    nisa.tensor_scalar(sb(8, 8), sb(8, 8), nl.add, sb(8, 1, dtype=kind), **more)


def second_scalar(kind: Any) -> None:
    column = sb(8, 1, dtype=kind)
    nisa.tensor_scalar(sb(8, 8), sb(8, 8), nl.add, 1.0, op1=nl.add, operand1=column)


def word(op: Any, kind: Any) -> None:
    nisa.tensor_scalar(sb(8, 8, dtype=nl.int32), sb(8, 8, dtype=nl.int32), op, sb(8, 1, dtype=kind))


def both_integers(kind: Any) -> None:
    nisa.tensor_tensor(sb(8, 8, dtype=kind), sb(8, 8, dtype=kind), sb(8, 8, dtype=kind), nl.invert)


def ranges(kind: Any, which: str) -> None:
    tile = sb(8, 8, dtype=kind if which == "data" else nl.float32)
    low = sb(8, 1, dtype=kind if which == "bound0" else nl.float32)
    high = sb(8, 1, dtype=kind if which == "bound1" else nl.float32)
    nisa.range_select(sb(8, 8), tile, nl.less, nl.less, low, high)


def select(kind: Any, which: str) -> None:
    predicate = sb(8, 8, dtype=kind if which == "predicate" else nl.uint8)
    nisa.select_reduce(
        sb(8, 8), predicate, sb(8, 8, dtype=kind if which == "on_true" else nl.float32), 0.0
    )


def multiply(left: Any, right: Any) -> None:
    nisa.nc_matmul(ps(8, 8, value=False), sb(8, 8, dtype=left), sb(8, 8, dtype=right))


def bits_of(kind: Any) -> None:
    nisa.tensor_tensor(*(sb(8, 8, dtype=kind) for _ in range(3)), op=nl.bitwise_and)


Made = Callable[[Any], Any]
TAKES: dict[str, tuple[Made, frozenset[Any]]] = {
    "activation.bias": (
        lambda k: nisa.activation(sb(8, 8), nl.exp, sb(8, 8), bias=sb(8, 1, dtype=k)),
        ALL - {nl.tfloat32},
    ),
    "activation.scale": (scaled, F32),
    "activation_reduce.scale": (
        lambda k: nisa.activation_reduce(
            *(sb(8, 8), nl.exp, sb(8, 8), nl.add, sb(8, 1)), scale=sb(8, 1, dtype=k)
        ),
        F32,
    ),
    "tensor_scalar.operand0": (of_scalar, F32),
    "tensor_scalar.operand1": (second_scalar, F32),
    "tensor_scalar.operand0 of bits": (lambda k: word(nl.bitwise_and, k), frozenset(LIMITS)),
    "tensor_scalar_reduce.operand0": (
        lambda k: nisa.tensor_scalar_reduce(
            *(sb(8, 8), sb(8, 8), nl.add, sb(8, 1, dtype=k), nl.add, sb(8, 1))
        ),
        F32,
    ),
    "tensor_scalar_cumulative.imm0": (
        lambda k: nisa.tensor_scalar_cumulative(
            sb(8, 8), sb(8, 8), nl.add, nl.add, sb(8, 1, dtype=k)
        ),
        F32,
    ),
    "tensor_scalar_cumulative.src": (
        lambda k: nisa.tensor_scalar_cumulative(sb(8, 8), sb(8, 8, dtype=k), nl.add, nl.add, 0.0),
        ALL - I32 - U32,
    ),
    "tensor_scalar_cumulative.dst": (
        lambda k: nisa.tensor_scalar_cumulative(sb(8, 8, dtype=k), sb(8, 8), nl.add, nl.add, 0.0),
        ALL - I32 - U32,
    ),
    "tensor_tensor of bits": (bits_of, ALL - FLOATS),
    "tensor_reduce of bits": (
        lambda k: nisa.tensor_reduce(sb(8, 1, dtype=k), nl.bitwise_or, sb(8, 8, dtype=k), axis=1),
        ALL - FLOATS,
    ),
    "tensor_copy_predicated.predicate": (
        lambda k: nisa.tensor_copy_predicated(sb(8, 8), sb(8, 8), sb(8, 8, dtype=k)),
        U16 | U32 | {nl.uint8},
    ),
    "select_reduce.predicate": (
        lambda k: select(k, "predicate"),
        frozenset({nl.int8, nl.uint8, nl.int16, nl.uint16}),
    ),
    "select_reduce.on_true": (
        lambda k: select(k, "on_true"),
        ALL - I32 - U32 - {nl.tfloat32},
    ),
    "range_select.on_true_tile": (lambda k: ranges(k, "data"), FLOATS),
    "range_select.bound0": (lambda k: ranges(k, "bound0"), F32),
    "range_select.bound1": (lambda k: ranges(k, "bound1"), F32),
    "nc_find_index8.dst": (
        lambda k: nisa.nc_find_index8(sb(8, 8, dtype=k), sb(8, 8), sb(8, 8)),
        U16 | U32,
    ),
    "nc_match_replace8.dst_idx": (
        lambda k: nisa.nc_match_replace8(
            *(sb(8, 8), sb(8, 8), sb(8, 8), 0.0), dst_idx=sb(8, 8, dtype=k)
        ),
        U16 | U32,
    ),
    "nc_n_gather.indices": (
        lambda k: nisa.nc_n_gather(sb(8, 8), sb(8, 8), sb(8, 8, dtype=k)),
        U32,
    ),
    "local_gather.index": (
        lambda k: nisa.local_gather(sb(16, 16), sb(16, 8), sb(16, 1, dtype=k)),
        U16,
    ),
    "nonzero_with_count.src": (
        lambda k: nisa.nonzero_with_count(sb(16, 9, dtype=nl.int32), sb(16, 8, dtype=k)),
        F32 | I32,
    ),
    "nonzero_with_count.dst": (
        lambda k: nisa.nonzero_with_count(sb(16, 9, dtype=k), sb(16, 8)),
        I32,
    ),
    "sequence_bounds.segment_ids": (
        lambda k: nisa.sequence_bounds(sb(1, 2, 8), sb(1, 8, dtype=k)),
        F32 | I32,
    ),
    "bn_stats.data": (lambda k: nisa.bn_stats(sb(8, 6), sb(8, 8, dtype=k)), FLOATS),
    "nc_matmul.stationary with bfloat16": (
        lambda k: multiply(k, BF),
        frozenset({BF, F16, nl.float8_e4m3, nl.float8_e5m2}),
    ),
    "nc_matmul.moving with bfloat16": (
        lambda k: multiply(BF, k),
        frozenset({BF, F16, nl.float8_e4m3, nl.float8_e5m2}),
    ),
    "nc_matmul.moving with float32": (lambda k: multiply(nl.float32, k), F32),
    "nc_matmul.moving with tfloat32": (
        lambda k: multiply(nl.tfloat32, k),
        frozenset({nl.tfloat32}),
    ),
    "rand_get_state.dst": (lambda k: nisa.rand_get_state(sb(8, 6, dtype=k)), U32),
    "rand_set_state.src_seeds": (lambda k: nisa.rand_set_state(sb(8, 6, dtype=k)), U32),
    "set_rng_seed.src_seeds": (
        lambda k: nisa.set_rng_seed(sb(1, 1, dtype=k)),
        F32 | I32 | U32,
    ),
    "rng.dst": (lambda k: nisa.rng(sb(8, 8, dtype=k)), frozenset(LIMITS)),
    "scalar_load.src": (lambda k: nisa.scalar_load(sb(1, 1, dtype=k)), I32),
}
PAIRS = {  # both ends have the same dtype
    "dma_transpose": lambda a, b: nisa.dma_transpose(b, a),
    "nc_transpose": lambda a, b: nisa.nc_transpose(b, a, engine=nisa.engine.vector),
    "nc_stream_shuffle": lambda a, b: nisa.nc_stream_shuffle(b, a, [0] * 32),
    "tensor_copy_predicated": lambda a, b: nisa.tensor_copy_predicated(
        b, a, sb(8, 8, dtype=nl.uint8)
    ),
    "nc_n_gather": lambda a, b: nisa.nc_n_gather(b, a, sb(8, 8, dtype=nl.uint32)),
    "dropout": lambda a, b: nisa.dropout(b, a, 0.5),
    "dma_copy with hwdge": lambda a, b: nisa.dma_copy(b, a, dge_mode=nisa.dge_mode.hwdge),
}


def activated(**more: Any) -> None:
    nisa.activation(sb(8, 8), nl.exp, sb(8, 8), **more)


def activated2(**more: Any) -> None:
    nisa.activate2(sb(8, 8), nl.exp, sb(8, 8), 1.0, 0.0, nl.multiply, nl.add, **more)


def ranged(**more: Any) -> None:
    nisa.range_select(sb(8, 8), sb(8, 8), nl.less, nl.less, sb(8, 1), sb(8, 1), **more)


def chosen(**more: Any) -> None:
    nisa.select_reduce(sb(8, 8), sb(8, 8, dtype=nl.uint8), sb(8, 8), 0.0, **more)


def summed(**more: Any) -> None:
    nisa.tensor_scalar_reduce(sb(8, 8), sb(8, 8), nl.add, 1.0, nl.add, **more)


def running(**more: Any) -> None:
    nisa.tensor_scalar_cumulative(sb(8, 8), sb(8, 8), nl.add, nl.add, 0.0, **more)


def product(**more: Any) -> None:
    nisa.nc_matmul(ps(8, 8, value=False), sb(8, 8, dtype=BF), sb(8, 8, dtype=BF), **more)


def skipping_transpose() -> None:
    table, index = hbm(4, 8), sb(2, 1, dtype=nl.int32, value=9)
    nisa.dma_copy(table, sb(4, 8))
    rows = table.ap([[8, 2], [1, 8]], vector_offset=index)
    nisa.dma_transpose(sb(8, 2), rows, oob_mode=nisa.oob_mode.skip)


def words(op: Any, operand: Any, **more: Any) -> None:
    nisa.tensor_scalar(sb(8, 8, dtype=nl.int32), sb(8, 8, dtype=nl.int32), op, operand, **more)


def added(scales: Any = None, count: int = 1, op: Any = nl.add) -> None:
    nisa.dma_compute(sb(8, 8), [sb(8, 8)] * count, op, scales=scales)


LOAD, PIXEL = CMD.load_reduce, nisa.matmul_perf_mode.double_pixel
ONE = nl.uint8
BY_ARGUMENT = [  # (rule, call, target, about)
    ("value", lambda: activated(reduce_op=nl.add, reduce_cmd=LOAD), "trn2", "activation: load"),
    ("value", lambda: activated2(reduce_op=nl.add, reduce_cmd=LOAD), "trn3", "activate2: load"),
    ("value", lambda: ranged(reduce_cmd=LOAD), "trn2", "range_select: load_reduce"),
    ("value", lambda: chosen(reduce_cmd=LOAD), "trn2", "select_reduce: load_reduce"),
    ("value", lambda: summed(reduce_cmd=LOAD), "trn2", "tensor_scalar_reduce: load of nothing"),
    ("value", lambda: running(reduce_cmd=LOAD), "trn2", "cumulative: load_reduce without imm1"),
    ("value", lambda: running(reduce_cmd=CMD.idle), "trn2", "cumulative: idle"),
    ("value", lambda: running(reduce_cmd=CMD.reset), "trn2", "cumulative: reset"),
    *(
        ("accumulate-undefined", lambda f=f: f(reduce_cmd=CMD.reduce), target, f"{about}: reduce")
        for f, target, about in [
            *((ranged, "trn2", "range_select"), (chosen, "trn2", "select_reduce")),
            *((summed, "trn2", "tensor_scalar_reduce"), (running, "trn2", "cumulative")),
        ]
    ),
    ("signature", lambda: activated(reduce_cmd=CMD.reset_reduce), "trn2", "reduce without an op"),
    (
        "accumulate-undefined",
        lambda: activated(reduce_res=sb(8, 1)),
        *("trn2", "activation: an idle register is read"),
    ),
    ("operator", lambda: activated(reduce_op=nl.maximum), "trn2", "activation: maximum of a row"),
    ("operator", lambda: ranged(reduce_op=nl.add), "trn2", "range_select: sum of a row"),
    (
        "engine",
        lambda: activated(engine=nisa.engine.gpsimd, reduce_op=nl.add, reduce_cmd=CMD.reset_reduce),
        *("trn3", "activation: GpSimd reduces"),
    ),
    (
        "engine",
        lambda: nisa.tensor_copy(sb(8, 8), sb(8, 8), engine=nisa.engine.tensor),
        *("trn2", "tensor_copy on TensorE"),
    ),
    (
        "value",
        lambda: nisa.tensor_reduce(
            sb(8, 1, dtype=ONE), nl.bitwise_or, sb(8, 8, dtype=ONE), axis=1, negate=True
        ),
        *("trn2", "tensor_reduce: negated bits"),
    ),
    (
        "shape",
        lambda: nisa.tensor_reduce(sb(8, 8), nl.add, sb(8, 8, 4), axis=1),
        *("trn2", "tensor_reduce: not the last axis"),
    ),
    (
        "shape",
        lambda: nisa.tensor_reduce(sb(8, 1), nl.add, sb(8, 8), axis=0),
        *("trn2", "tensor_reduce: partitions"),
    ),
    ("shape", lambda: words(nl.bitwise_and, sb(1, 1, dtype=ONE)), "trn2", "one row of bits for 8"),
    (
        "shape",
        lambda: nisa.tensor_scalar(sb(8, 8), sb(8, 8), nl.add, sb(1, 1)),
        *("trn2", "one operand for 8 partitions"),
    ),
    ("dtype", lambda: words(nl.bitwise_and, 1.5), "trn2", "bits of a fraction"),
    (
        "operator",
        lambda: words(nl.bitwise_and, 1, op1=nl.add, operand1=1.0),
        *("trn2", "bits, then a sum"),
    ),
    ("operator", lambda: both_integers(nl.int32), "trn2", "tensor_tensor: invert has one operand"),
    ("signature", lambda: words(nl.add, None), "trn2", "tensor_scalar: no operand"),
    ("signature", lambda: words(nl.add, 1.0, operand1=1.0), "trn2", "operand1 without op1"),
    ("signature", lambda: words(nl.add, 1.0, op1=nl.add), "trn2", "op1 without operand1"),
    ("value", skipping_transpose, "trn2", "dma_transpose that skips"),
    (
        "value",
        lambda: nisa.dma_transpose(sb(8, 8), sb(8, 8), axes=(0, 1)),
        *("trn2", "dma_transpose: axes"),
    ),
    ("value", lambda: added([2.0]), "trn2", "dma_compute: scale"),
    ("value", lambda: added([1.0, 1.0]), "trn2", "dma_compute: two scales of one"),
    ("size-limit", lambda: added(count=17), "trn2", "dma_compute: 17 sources"),
    ("signature", lambda: added(count=0), "trn2", "dma_compute of nothing"),
    ("operator", lambda: added(op=nl.maximum), "trn2", "dma_compute: maximum"),
    ("value", lambda: product(perf_mode=PIXEL), "trn2", "nc_matmul: double_pixel"),
    (
        "dtype",
        lambda: product(perf_mode=nisa.matmul_perf_mode.double_row),
        *("trn2", "nc_matmul: double_row"),
    ),
    (
        "same-dtype",
        lambda: product(is_transpose=True),
        *("trn2", "nc_matmul: is_transpose into float32"),
    ),
    (
        "value",
        lambda: product(tile_position=(0, 0), tile_size=(16, 128)),
        *("trn2", "nc_matmul: tile of 16"),
    ),
    (
        "value",
        lambda: product(tile_position=(16, 0), tile_size=(32, 128)),
        *("trn2", "nc_matmul: tile at 16"),
    ),
    ("signature", lambda: product(tile_size=(32, 128)), "trn2", "nc_matmul: tile without a place"),
    ("core-barrier", lambda: nisa.core_barrier(None), "trn2", "core_barrier: cores of one"),
]
