"""Cycles per instruction against values computed by hand from the documentation's formulas."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import jit, session
from nki_kernels.simulator import language as nl
from nki_kernels.simulator.cost.constants import TABLE, Status
from nki_kernels.simulator.cost.cycles import FORMULAS, cycles
from nki_kernels.simulator.cost.dma import transfer
from nki_kernels.simulator.hardware import Engine
from nki_kernels.simulator.instruction import INSTRUCTIONS
from nki_kernels.simulator.ledger import Event

f32, bf16, i32 = nl.float32, nl.bfloat16, nl.int32
SBUF, PSUM = nl.sbuf, nl.psum
ADD, MUL = nl.add, nl.multiply


def tile(
    shape: tuple[int, ...], dtype: Any = f32, buffer: Any = SBUF, value: float | None = None
) -> Any:
    made = nl.ndarray(shape, dtype, buffer=buffer)
    zero = 0.0 if made.dtype.is_float else 0
    nisa.memset(made, zero if value is None else value)
    return made


def last(body: Callable[[], Any], target: str) -> tuple[Event, Any]:
    with session(target=target) as run:
        jit(body)()
    return run.ledger.events[-1], run.generation


def tt(a: Any, b: Any, dst: Any, op: Any = MUL, **options: Any) -> Any:
    return lambda: nisa.tensor_tensor(tile(*dst), tile(*a), tile(*b), op, **options)


def w(n: int, *rest: Any) -> tuple[Any, ...]:
    return ((128, n), *rest)


def reducing(op: Any, dtype: Any) -> Any:
    return lambda: nisa.tensor_reduce(tile(w(1)[0]), op, tile((128, 512), dtype), 1)


def matmul(m: int, n: int, dtype: Any, **options: Any) -> Any:
    def body() -> None:
        out = nl.ndarray((m, n), f32, buffer=PSUM)
        nisa.nc_matmul(out, tile((128, m), dtype), tile((128, n), dtype), **options)

    return body


def copied(n: int, dtype: Any, source: Any = SBUF, step: int = 1, **options: Any) -> Any:
    return lambda: nisa.tensor_copy(
        tile((128, n), dtype), tile((128, n * step), dtype, source)[:, ::step], **options
    )


def summed(result: bool) -> Any:
    def body() -> None:
        options = {"reduce_cmd": nisa.reduce_cmd.reset_reduce} if result else {}
        data, out = tile((128, 512)), tile((128, 512))
        sums = tile((128, 1)) if result else None
        nisa.activation(out, nl.exp, data, reduce_op=ADD, reduce_res=sums, **options)

    return body


def predicated(buffer: Any) -> None:
    src = tile((128, 512), f32, buffer)
    nisa.tensor_copy_predicated(tile((128, 512)), src, tile((128, 512), nl.uint8))


BY_HAND = {
    # one input in PSUM: N; otherwise 2N; all bfloat16 dense + - x: N, half of it from gen3
    "tensor_tensor sbuf": (tt(w(512), w(512), w(512)), "trn1", 1024),
    "tensor_tensor psum": (tt(w(512, f32, PSUM), w(512), w(512)), "trn1", 512),
    "tensor_tensor small": (tt(w(8), w(8), w(8)), "trn1", 64),
    "tensor_tensor bf16": (tt(w(512, bf16), w(512, bf16), w(512, bf16)), "trn1", 512),
    "tensor_tensor bf16 gen3": (tt(w(512, bf16), w(512, bf16), w(512, bf16)), "trn2", 256),
    "tensor_tensor bf16 max": (
        *(tt(w(512, bf16), w(512, bf16), w(512, bf16), nl.maximum), "trn1", 1024),
    ),
    "tensor_tensor bf16 max gen3": (
        *(tt(w(512, bf16), w(512, bf16), w(512, bf16), nl.maximum), "trn2", 512),
    ),
    "tensor_tensor to f32": (tt(w(512, bf16), w(512, bf16), w(512)), "trn2", 1024),
    "tensor_tensor gpsimd": (
        *(tt(w(512), w(512), w(512), engine=nisa.engine.gpsimd), "trn2", 1024 + 150),
    ),
    "tensor_copy f32": (copied(512, f32), "trn2", 512),
    "tensor_copy bf16": (copied(512, bf16), "trn2", 128),
    "tensor_copy bf16 gen2": (copied(512, bf16), "trn1", 512),
    "tensor_copy bf16 strided": (copied(512, bf16, step=2), "trn2", 256),
    "tensor_copy bf16 from psum": (copied(512, bf16, PSUM), "trn2", 256),
    "tensor_copy bf16 on scalar": (copied(512, bf16, engine=nisa.engine.scalar), "trn2", 512),
    "tensor_scalar f32": (
        *(lambda: nisa.tensor_scalar(tile((128, 300)), tile((128, 300)), MUL, 2.0), "trn2", 300),
    ),
    "tensor_scalar bf16": (
        lambda: nisa.tensor_scalar(tile((128, 512), bf16), tile((128, 512), bf16), MUL, 2.0),
        *("trn2", 128),
    ),
    "tensor_scalar by a column": (
        lambda: nisa.tensor_scalar(
            *(tile((128, 512), bf16), tile((128, 512), bf16), MUL, tile((128, 1)))
        ),
        *("trn2", 128),
    ),
    "scalar_tensor_tensor": (
        lambda: nisa.scalar_tensor_tensor(
            *(tile((128, 512)), tile((128, 512)), MUL, 2.0, ADD, tile((128, 512)))
        ),
        *("trn2", 1024),
    ),
    "scan": (
        lambda: nisa.tensor_tensor_scan(
            *(tile((128, 512)), tile((128, 512)), tile((128, 512)), 0.0, MUL, ADD)
        ),
        *("trn1", 1024),
    ),
    "scan small": (
        lambda: nisa.tensor_tensor_scan(
            *(tile((128, 8)), tile((128, 8)), tile((128, 8)), 0.0, MUL, ADD)
        ),
        *("trn1", 64),
    ),
    "memset f32": (
        lambda: nisa.memset(nl.ndarray((128, 512), f32), 0.0, engine=nisa.engine.vector),
        *("trn1", 512),
    ),
    "memset bf16 zero": (lambda: nisa.memset(nl.ndarray((128, 512), bf16), 0.0), "trn1", 256),
    "memset bf16 one": (lambda: nisa.memset(nl.ndarray((128, 512), bf16), 1.0), "trn1", 512),
    "activation": (summed(False), "trn2", 512),
    "activation with a result": (summed(True), "trn2", 512 + 64),
    "tensor_reduce": (reducing(ADD, f32), "trn2", 512),
    "tensor_reduce bf16": (reducing(ADD, bf16), "trn2", 256),
    "tensor_reduce bf16 min": (reducing(nl.minimum, bf16), "trn2", 512),
    "tensor_scalar_reduce": (
        lambda: nisa.tensor_scalar_reduce(
            *(tile((128, 512)), tile((128, 512)), MUL, 2.0, ADD), reduce_res=tile((128, 1))
        ),
        *("trn2", 512 + 64),
    ),
    "reciprocal": (
        *(lambda: nisa.reciprocal(tile((128, 512)), tile((128, 512), value=1.0)), "trn2", 4096),
    ),
    "reciprocal small": (
        *(lambda: nisa.reciprocal(tile((128, 1)), tile((128, 1), value=1.0)), "trn2", 64),
    ),
    "matmul bf16": (matmul(128, 512, bf16), "trn2", 512),
    "matmul bf16 few columns": (matmul(128, 8, bf16), "trn2", 64),
    "matmul bf16 vector": (matmul(1, 1, bf16), "trn2", 1),
    "matmul f32": (matmul(128, 512, f32), "trn2", 2048),
    "matmul f32 hinted": (matmul(128, 512, f32, is_stationary_onezero=True), "trn2", 1024),
    "transpose on TensorE": (
        lambda: nisa.nc_transpose(
            nl.ndarray((100, 128), bf16, buffer=PSUM), tile((128, 100), bf16)
        ),
        *("trn2", 128),
    ),
    "predicated": (lambda: predicated(SBUF), "trn2", 1024),
    "predicated from psum": (lambda: predicated(PSUM), "trn2", 512),
    "max8": (lambda: nisa.max8(tile((128, 8)), tile((128, 512))), "trn2", 512),
    "bn_stats": (*(lambda: nisa.bn_stats(tile((128, 6)), tile((128, 300))), "trn2", 300),),
    "bn_aggr": (lambda: nisa.bn_aggr(tile((128, 2)), tile((128, 60))), "trn2", 260),
    "iota": (lambda: nisa.iota(nl.ndarray((128, 512), i32), [[1, 512]]), "trn2", 662),
    "affine_select": (
        lambda: nisa.affine_select(
            *(tile((128, 512)), [[1, 512]], 1, tile((128, 512)), 0.0, nl.less)
        ),
        *("trn2", 662),
    ),
    "exponential": (lambda: nisa.exponential(tile((128, 512)), tile((128, 512))), "trn3", 128),
    "activation bf16 gen4": (
        lambda: nisa.activation(tile((128, 512), bf16), nl.exp, tile((128, 512), bf16)),
        *("trn3", 256),
    ),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_cycles_are_those_of_the_formula(case: str) -> None:
    body, target, expected = BY_HAND[case]
    event, generation = last(body, target)
    assert cycles(event, generation) == pytest.approx(expected)


def test_every_instruction_has_a_formula_or_is_a_dma() -> None:
    without = {
        name
        for name, spec in INSTRUCTIONS.items()
        if name not in FORMULAS and Engine.dma not in spec.engines
    }
    assert without == {
        "activate2",
        "dropout",
        "local_gather",
        "nc_matmul_mx",
        "nonzero_with_count",
        "quantize_mx",
        "rand2",
        "rand_get_state",
        "rand_set_state",
        "rng",
        "sequence_bounds",
        "set_rng_seed",
    }  # undocumented; the report names them


def test_every_constant_names_its_source_and_status() -> None:
    assert len({constant.name for constant in TABLE}) == len(TABLE)
    assert all(constant.source and constant.generations for constant in TABLE)
    assert {constant.status for constant in TABLE} == set(Status)


def dma(x: np.ndarray, body: Callable[[Any], Any], target: str = "trn1") -> Any:
    with session(target=target) as run:
        jit(body)(x)
    return transfer(run.ledger.events[-1], run.generation)


def test_a_dma_of_long_rows_comes_near_the_full_rate() -> None:
    def load(x: Any) -> None:
        nisa.dma_copy(nl.ndarray((128, 512), f32), x)

    found = dma(np.ones((128, 512), np.float32), load)
    assert (found.bytes, found.descriptors, found.run) == (128 * 512 * 4, 128, 2048)
    assert found.efficiency == pytest.approx(2048 / 2304)
    assert found.busy == pytest.approx(128 * 2048 / (272e9 * 2048 / 2304))
    assert found.latency == pytest.approx(1.3e-6)


def test_descriptor_generation_takes_time_from_gen3() -> None:
    def load(x: Any) -> None:
        nisa.dma_copy(nl.ndarray((128, 512), f32), x)

    assert dma(np.ones((128, 512), np.float32), load, "trn2").latency == pytest.approx(1.9e-6)


def test_scattered_two_byte_elements_are_about_a_hundred_times_slower() -> None:
    def load(x: Any) -> None:
        nisa.dma_copy(nl.ndarray((128, 512), nl.float16), x.ap([[1, 128], [128, 512]]))

    found = dma(np.ones((512, 128), np.float16), load)
    assert (found.descriptors, found.run) == (512 * 128, 2)
    assert 1 / found.efficiency == pytest.approx(129)


def test_one_row_uses_one_queue_and_leaves_the_rest_to_others() -> None:
    def load(x: Any) -> None:
        nisa.dma_copy(nl.ndarray((1, 4096), f32), x)

    found = dma(np.ones((1, 4096), np.float32), load)
    assert found.descriptors == 1
    assert found.latency == pytest.approx(1.3e-6 + 15 * found.busy)


def test_a_replicated_row_counts_what_arrives() -> None:
    def load(x: Any) -> None:
        nisa.dma_copy(nl.ndarray((128, 512), f32), x.ap([[0, 128], [1, 512]]))

    assert dma(np.ones((1, 512), np.float32), load).bytes == 128 * 512 * 4


def test_an_offset_vector_is_no_payload() -> None:
    def load(x: Any) -> None:
        rows = nl.ndarray((128, 1), i32)
        nisa.iota(rows, [[1, 1]], channel_multiplier=1)
        view = x.ap([[512, 128], [1, 512]], vector_offset=rows)
        nisa.dma_copy(nl.ndarray((128, 512), f32), view)

    assert dma(np.ones((128, 512), np.float32), load).bytes == 128 * 512 * 4


@pytest.mark.parametrize(("dtype", "share"), [(np.float16, 0.9), (np.float32, 4 / 260)])
def test_a_transposing_dma_is_fast_for_two_bytes(dtype: Any, share: float) -> None:
    def load(x: Any) -> None:
        nisa.dma_transpose(nl.ndarray((64, 128), x.dtype), x)

    found = dma(np.ones((128, 64), dtype), load)
    assert found.efficiency == pytest.approx(share)
