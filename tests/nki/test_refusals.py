"""Every rule of the table is broken once, and refused under its name with the kernel's line.

A strict rule is a warning, given once, where the session is not strict.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nki_kernels.simulator import NkiValidationError, NkiWarning, jit, session
from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from nki_kernels.simulator.rules import RULES, Mode
from nki_kernels.simulator.scalars import NkiScalar
from tests.nki.cases.refused import BY_INSTRUCTION, Refusal, hbm, ps, sb
from tests.nki.cases.refused_arguments import BY_ARGUMENT
from tests.nki.test_lint import PARSER

X = np.ones((128, 64), np.float32)


def sbuf_over_time() -> None:
    tiles = [sb(128, 16 * 1024) for _ in range(4)]
    for tile in tiles:
        nisa.tensor_scalar(tile, tile, nl.add, 1.0)


def psum_over_time() -> None:
    tiles = [ps(128, 512) for _ in range(9)]
    for tile in tiles:
        nisa.tensor_scalar(tile, tile, nl.add, 1.0)


def matmul_across_banks() -> None:
    nisa.nc_matmul(ps(128, 1024, value=False)[:, 300:600], sb(128, 128), sb(128, 300))


def gather(*rows: int) -> None:
    index = sb(2, 1, dtype=nl.int32)
    for place, row in enumerate(rows):
        nisa.dma_copy(index[place : place + 1], nl.full((1, 1), row, nl.int32))
    table = hbm(4, 8)
    nisa.dma_copy(table, sb(4, 8))
    nisa.dma_copy(sb(2, 8), table.ap([[8, 2], [1, 8]], vector_offset=index))


def untouched_accumulate() -> None:
    nisa.nc_matmul(ps(64, 32, value=False), sb(8, 64), sb(8, 32), accumulate=True)


def foreign_accumulate() -> None:
    nisa.nc_matmul(ps(64, 32), sb(8, 64), sb(8, 32), accumulate=True)


def continued_without_start() -> None:
    nisa.activation(sb(4, 4), nl.exp, sb(4, 4), reduce_op=nl.add, reduce_cmd=nisa.reduce_cmd.reduce)


def returns(make: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: make()


def run_time_if() -> None:
    if NkiScalar(1):
        pass


C = nisa.tensor_copy
REFUSALS = [
    Refusal("sbuf-capacity", sbuf_over_time),
    Refusal("sbuf-capacity", lambda: sb(128, 64 * 1024), about="one tile"),
    Refusal("psum-capacity", psum_over_time),
    Refusal("psum-capacity", lambda: ps(128, 8192), about="one tile"),
    Refusal("psum-bank", matmul_across_banks),
    Refusal("partitions", lambda: sb(129, 4)),
    Refusal("partition-start", lambda: C(sb(32, 4), sb(128, 4)[40:72])),
    Refusal("partition-start", lambda: C(sb(64, 4), sb(128, 4)[32:96]), about="64 wide"),
    Refusal("partition-start", lambda: C(sb(65, 4), sb(128, 4)[32:97]), about="65 wide"),
    Refusal("partition-stride", lambda: C(sb(64, 4), sb(128, 4)[0:128:2])),
    Refusal("partition-view", lambda: sb(4, 4, 4).permute((1, 0, 2))),
    Refusal("partition-view", lambda: sb(4, 4).reshape((2, 8)), about="reshape"),
    Refusal("partition-view", lambda: sb(1, 4).broadcast(0, 8), about="broadcast"),
    Refusal("partition-view", lambda: sb(1, 4).expand_dim(0), about="expand_dim"),
    Refusal(
        "free-dimensions",
        lambda: C(sb(2, 32), sb(2, 4, 4, 4, 4, 4)[:, 0:2, 0:2, 0:2, 0:2, 0:2]),
    ),
    Refusal("buffer", lambda: nisa.nc_matmul(sb(8, 8), sb(8, 8), sb(8, 8))),
    Refusal("buffer", lambda: nisa.nc_matmul(ps(8, 8), ps(8, 8), sb(8, 8)), about="stationary"),
    Refusal("buffer", lambda: nisa.dma_copy(hbm(8, 8), ps(8, 8)), about="DMA from PSUM"),
    Refusal("buffer", lambda: nisa.iota(ps(8, 8), [[1, 8]]), about="GpSimd into PSUM"),
    Refusal("buffer", lambda: C(sb(8, 8), hbm(8, 8)), about="an engine from HBM"),
    Refusal("buffer", lambda: sb(8, 8), about="returned tile"),
    Refusal("engine-buffer", lambda: C(sb(8, 8), ps(8, 8), engine=nisa.engine.gpsimd)),
    Refusal(
        "engine",
        lambda: nisa.tensor_tensor(
            *(sb(8, 8), sb(8, 8), sb(8, 8)), op=nl.add, engine=nisa.engine.scalar
        ),
    ),
    Refusal("both-psum", lambda: nisa.tensor_tensor(sb(8, 8), ps(8, 8), ps(8, 8), nl.add)),
    Refusal(
        "both-psum",
        lambda: nisa.tensor_tensor_scan(
            *(sb(8, 8), ps(8, 8), ps(8, 8), 0.0), op0=nl.multiply, op1=nl.add
        ),
        about="scan",
    ),
    Refusal("generation", lambda: nisa.exponential(sb(8, 8), sb(8, 8))),
    Refusal(
        "generation",
        lambda: C(sb(8, 8), sb(8, 8), engine=nisa.engine.scalar),
        options={"target": "trn1"},
        about="ScalarE copy on gen2",
    ),
    Refusal(
        "generation",
        lambda: nisa.activation(sb(8, 8), nl.exp, sb(8, 8), bias=1.0),
        options={"target": "trn1"},
        about="a number as bias on gen2",
    ),
    Refusal(
        "generation",
        lambda: nisa.dma_copy(sb(8, 8), sb(8, 8), dge_mode=nisa.dge_mode.hwdge),
        options={"target": "trn1"},
        about="hwdge on gen2",
    ),
    Refusal(
        "generation",
        lambda: nisa.tensor_scalar(sb(8, 8), sb(8, 8), nl.abs_max, 0.0),
        about="abs_max before gen4",
    ),
    Refusal("nki-version", lambda: nl.mgrid),
    Refusal("nki-version", lambda: nl.dynamic_range(4), about="dynamic_range in 0.7"),
    Refusal("size-limit", lambda: nisa.nc_matmul(ps(8, 513), sb(8, 8), sb(8, 513))),
    Refusal("size-limit", lambda: nisa.max8(sb(8, 8), sb(8, 7)), about="max8 of 7"),
    Refusal("size-limit", lambda: nisa.nc_transpose(sb(33, 8), sb(8, 33)), about="VectorE"),
    Refusal("shape", lambda: nisa.tensor_reduce(sb(8, 1), nl.add, sb(8, 4, 4), axis=1)),
    Refusal("shape", lambda: nisa.tensor_reduce(sb(8, 1), nl.add, sb(8, 4), axis=0), about="axis"),
    Refusal(
        "shape",
        lambda: nisa.tensor_scalar(sb(8, 4), sb(8, 4), nl.add, sb(8, 2)),
        about="operand0 of two columns",
    ),
    Refusal("element-count", lambda: C(sb(8, 8), sb(8, 9))),
    Refusal("element-count", lambda: nisa.dma_copy(sb(8, 8), hbm(8, 9)), about="DMA"),
    Refusal("dtype", lambda: sb(8, 8, dtype=nl.int64)),
    Refusal(
        "dtype",
        lambda: nisa.activation(sb(8, 8), nl.exp, sb(8, 8), scale=sb(8, 1, dtype=nl.bfloat16)),
        about="scale",
    ),
    Refusal(
        "dtype",
        lambda: nisa.tensor_scalar(sb(8, 8), sb(8, 8), nl.add, sb(8, 1, dtype=nl.int32)),
        about="operand0",
    ),
    Refusal(
        "dtype",
        lambda: nisa.nc_matmul(ps(8, 8), sb(8, 8), sb(8, 8, dtype=nl.bfloat16)),
        about="float32 with bfloat16",
    ),
    Refusal(
        "dtype",
        lambda: nisa.tensor_scalar(sb(8, 8), sb(8, 8), nl.bitwise_and, 3),
        about="bitwise on floats",
    ),
    Refusal("same-dtype", lambda: nisa.nc_transpose(ps(8, 8), sb(8, 8, dtype=nl.bfloat16))),
    Refusal(
        "same-dtype",
        lambda: nisa.dma_copy(sb(8, 8), sb(8, 8, dtype=nl.bfloat16), dge_mode=nisa.dge_mode.hwdge),
        about="hwdge",
    ),
    Refusal("operator", lambda: nisa.activation(sb(8, 8), nl.add, sb(8, 8))),
    Refusal(
        "operator",
        lambda: nisa.tensor_tensor(sb(8, 8), sb(8, 8), sb(8, 8), "add"),
        about="a string",
    ),
    Refusal("enum", lambda: C(sb(8, 8), sb(8, 8), engine=1)),
    Refusal("enum", lambda: nisa.dma_copy(sb(8, 8), hbm(8, 8), dge_mode=4), about="no such number"),
    Refusal("enum-number", lambda: nisa.dma_copy(sb(8, 8), sb(8, 8), dge_mode=3)),
    Refusal("enum", lambda: nl.ndarray((8, 8), nl.float32, buffer="sbuf"), about="a string buffer"),
    Refusal("value", lambda: nisa.nc_stream_shuffle(sb(32, 8), sb(32, 8), [32] * 32)),
    Refusal(
        "value",
        lambda: nisa.nc_stream_shuffle(sb(32, 8), sb(1, 8), [1] * 32),
        about="shuffle beyond src",
    ),
    Refusal("value", lambda: nisa.dma_transpose(sb(8, 8), hbm(8, 8), axes=(0, 1)), about="axes"),
    Refusal("signature", lambda: C(src=sb(8, 8))),
    Refusal("signature", lambda: C(dst=sb(8, 8), src=sb(8, 8), dtype="fast"), about="no dtype"),
    Refusal("signature", lambda: C(sb(8, 8), np.ones((8, 8))), about="an array"),
    Refusal("index-bounds", lambda: sb(8, 8)[:, 4:9]),
    Refusal("index-bounds", lambda: sb(8, 8)[8], about="an int"),
    Refusal("ap-bounds", lambda: hbm(8, 8).ap([[8, 8], [1, 9]])),
    Refusal("ap-partition-stride", lambda: sb(8, 8).ap([[4, 8], [1, 4]])),
    Refusal("dma-bounds", lambda: gather(3, 4)),
    Refusal("dma-bounds", lambda: gather(0, -1), about="negative"),
    Refusal("view", lambda: sb(8, 4, 4).permute((0, 2, 1)).reshape((8, 16))),
    Refusal("tensor-operator", lambda: sb(8, 8) + sb(8, 8)),
    Refusal("tensor-operator", lambda: sb(8, 8).__setitem__(..., sb(8, 8)), about="assignment"),
    Refusal("tensor-value", lambda: bool(sb(1, 1))),
    Refusal("tensor-value", run_time_if, about="a run-time scalar"),
    Refusal("tensor-value", lambda: range(NkiScalar(3)), about="range()"),
    Refusal("accumulate-undefined", continued_without_start),
    Refusal("core-barrier", lambda: nisa.core_barrier(None)),
    Refusal("argument-dtype", lambda x: None, inputs=(np.ones((8, 8)),)),
    Refusal("read-undefined", lambda: C(sb(8, 8), sb(8, 8, value=False))),
    Refusal("output-unwritten", lambda: hbm(8, 8)),
    Refusal("accumulate-virgin", untouched_accumulate),
    Refusal("accumulate-foreign", foreign_accumulate),
    Refusal("undeclared-write", lambda x: nisa.dma_copy(x, sb(128, 64)), inputs=(X.copy(),)),
    Refusal("sbuf-usable", lambda: nisa.memset(nl.ndarray((128, 54000), nl.float32), 1.0)),
    Refusal("old-argument", lambda: C(dst=sb(8, 8), src=sb(8, 8), dtype=nl.float32)),
    Refusal("old-argument", lambda: C(sb(8, 8), sb(8, 8), dtype=nl.bfloat16), about="another"),
    Refusal("memset-type", lambda: nisa.memset(sb(8, 8, value=False), 0)),
    Refusal("memset-type", lambda: nisa.memset(sb(8, 8, dtype=nl.int32), 1.0), about="int tile"),
    Refusal("numpy-operator", lambda: nisa.tensor_tensor(sb(8, 8), sb(8, 8), sb(8, 8), np.add)),
]


def unreturned() -> Any:
    out = nl.ndarray((8, 8), nl.float32, buffer=nl.hbm)
    nisa.dma_copy(out, sb(8, 8))
    return out


def tiled(*size: int, at: tuple[int, int] = (0, 0), rows: int = 32) -> Any:
    operands = sb(rows, 32), sb(rows, 8)
    return lambda: nisa.nc_matmul(ps(32, 8), *operands, tile_position=at, tile_size=size)


REFUSALS.append(Refusal("output-buffer", unreturned))


def partly_written() -> Any:
    out = hbm(8, 8)
    nisa.dma_copy(out[0:4], sb(4, 8))
    return out


def not_returned() -> None:
    nisa.dma_copy(hbm(8, 8), sb(8, 8))


def nested(outer: Any, inner: Any) -> None:
    def row(i: Any) -> None:
        inner(0, 2, lambda j: None)

    outer(0, 2, row)


def nested_ranges() -> None:
    for _ in nl.dynamic_range(2):
        for _ in nl.dynamic_range(2):
            pass


REFUSALS += [
    Refusal("read-undefined", partly_written, about="an output written in part"),
    Refusal("output-unwritten", lambda: {"y": hbm(8, 8)}, about="in a dict"),
    Refusal("no-output", not_returned),
    Refusal("nested-loop", lambda: nested(nl.fori_loop, nl.fori_loop)),
    Refusal("nested-loop", nested_ranges, options={"nki": "0.5"}, about="dynamic_range"),
    Refusal("raw-dtype", lambda: nisa.memset(nl.ndarray((8, 8), np.float32), 1.0)),
    Refusal("raw-dtype", lambda: nisa.memset(nl.ndarray((8, 8), "int32"), 1), about="a string"),
    Refusal("tensor-value", lambda: np.exp(sb(8, 8)), about="numpy on a tile"),
    Refusal("dma-engine", lambda: nisa.dma_copy(sb(8, 8), sb(8, 8), engine=nisa.engine.scalar)),
    Refusal("partition-start", lambda: C(sb(32, 4), sb(128, 4)[96:128][8:16]), about="inner view"),
    *(
        Refusal(rule, call, (), {"target": on}, about)
        for rule, call, on, about in BY_INSTRUCTION + BY_ARGUMENT
    ),
]


def used_outside_its_loop() -> None:
    made: list[Any] = []
    nl.fori_loop(0, 1, lambda i: made.append(sb(8, 8)))
    nisa.memset(made[0], 2.0)


def in_a_circle() -> None:
    tiles = sb(8, 8), sb(8, 8)
    first, second = (nisa.memset(tile, 2.0) for tile in tiles)
    first.depends_on(second.depends_on(first))


REFUSALS += [
    Refusal(
        "endless-loop",
        lambda: nl.while_loop(nisa.register_alloc(1), lambda r: r),
        options={"loop_limit": 9},
    ),
    Refusal("loop-scope", used_outside_its_loop),
    Refusal("schedule", in_a_circle),
]
REFUSALS += [
    Refusal("column-tiling", lambda: tiled(64, 32)()),
    Refusal("value", lambda: tiled(48, 128)(), about="tile_size"),
    Refusal("value", lambda: tiled(64, 128, at=(32, 0))(), about="tile_position"),
    Refusal("size-limit", lambda: tiled(32, 128, rows=64)(), about="a tile that is too small"),
    Refusal(
        "value", lambda: tiled(32, 128)(), options={"target": "trn1"}, about="32 rows before gen3"
    ),
    Refusal(
        "dtype",
        lambda: nisa.nc_matmul(
            *(ps(8, 8), sb(8, 2, 8), sb(8, 2, 8)), perf_mode=nisa.matmul_perf_mode.double_row
        ),
        about="double_row of float32",
    ),
    Refusal(
        "value",
        lambda: nisa.range_select(
            *(sb(8, 8), sb(8, 8), nl.less, nl.less, sb(8, 1), sb(8, 1)), on_false_value=0.0
        ),
        about="on_false_value of range_select",
    ),
    Refusal("value", lambda: nisa.dropout(sb(8, 8), sb(8, 8), 1.5), about="prob"),
    Refusal(
        "operator",
        lambda: nisa.activate2(
            *(sb(8, 8), nl.exp, sb(8, 8), 1.0, 1.0, nl.bypass, nl.add),
        ),
        options={"target": "trn3"},
        about="a pair that activate2 does not have",
    ),
]
IDS = [f"{one.rule}{'-' + one.about if one.about else ''}" for one in REFUSALS]


def refused(one: Refusal, **options: Any) -> Any:
    with session(**({"target": "trn2"} | options | one.options)):
        return jit(one.kernel)(*one.inputs)


@pytest.mark.parametrize("one", REFUSALS, ids=IDS)
def test_a_broken_rule_is_refused_by_name_with_the_line(one: Refusal) -> None:
    with pytest.raises(NkiValidationError) as caught:
        refused(one, strict=True)
    assert caught.value.rule == one.rule
    assert "/tests/nki/" in caught.value.line
    assert caught.value.expected
    assert caught.value.got
    frames = [entry.frame.code.path.as_posix() for entry in caught.traceback]
    assert not [path for path in frames if "nki_kernels/simulator" in path], "hidden"


@pytest.mark.parametrize(
    "one", [one for one in REFUSALS if RULES[one.rule].mode is Mode.STRICT], ids=lambda o: o.rule
)
def test_a_strict_rule_is_a_warning_given_once_otherwise(one: Refusal) -> None:
    kernel = jit(one.kernel)

    def twice() -> None:
        for _ in range(2):
            kernel(*one.inputs)

    with session(target="trn2"), pytest.warns(NkiWarning, match=one.rule) as caught:
        twice()
    assert len([w for w in caught if one.rule in str(w.message)]) == 1


def test_every_rule_has_a_case() -> None:
    elsewhere = {"session", "jit-option", "list-argument", "old-compiler", "python-source"}
    assert {one.rule for one in REFUSALS} | {*PARSER} | elsewhere == set(RULES)


def test_an_instruction_outside_a_kernel_is_refused() -> None:
    with pytest.raises(NkiValidationError, match="session"):
        nl.ndarray((8, 8), nl.float32)
