"""The schedule: bounds that it cannot beat, what waits for what, and cores that meet."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import jit, session
from nki_kernels.simulator import language as nl
from nki_kernels.simulator.cost.dependencies import Kind, Tracker, overlap
from nki_kernels.simulator.cost.schedule import Schedule, Timeline, schedule
from nki_kernels.simulator.ledger import Ledger
from tests.nki.kernels.matmul import matmul_tiled
from tests.nki.kernels.rmsnorm import rmsnorm
from tests.nki.kernels.selective_scan import selective_scan_v1

V, S = nisa.engine.vector, nisa.engine.scalar
ONES = np.ones((128, 512), np.float32)


def ran(body: Callable[..., Any], *arrays: Any, target: str = "trn2", cores: int = 0) -> Ledger:
    with session(target=target) as run:
        kernel = jit(body)
        (kernel[cores] if cores else kernel)(*arrays)
    return run.ledger


def scheduled(
    body: Callable[..., Any], *arrays: Any, target: str = "trn2", cores: int = 0
) -> Schedule:
    with session(target=target) as run:
        kernel = jit(body)
        (kernel[cores] if cores else kernel)(*arrays)
    ledger = run.ledger
    return schedule(ledger.events, run.generation, [first for first, _ in ledger.launches])


def scan_inputs() -> list[np.ndarray]:
    shapes = [(256, 64), (256, 64), (256, 4), (4, 64), (4, 64)]
    return [np.full(shape, 0.1, np.float32) for shape in shapes]


KERNELS = {
    "matmul": (matmul_tiled, [np.ones((256, 256), np.float32), np.ones((256, 1024), np.float32)]),
    "rmsnorm": (rmsnorm, [np.ones((200, 96), np.float32), np.ones((1, 96), np.float32)]),
    "scan": (selective_scan_v1, scan_inputs()),
}


@pytest.mark.parametrize("target", ["trn1", "trn2", "trn3"])
@pytest.mark.parametrize("name", KERNELS)
def test_never_below_the_bounds_nor_above_the_sum(name: str, target: str) -> None:
    kernel, arrays = KERNELS[name]
    found = scheduled(kernel, *arrays, target=target)
    assert found.length >= found.lower_bound > 0
    assert found.length >= found.critical_path > 0
    assert found.length <= sum(step.done - step.start for step in found.steps) * (1 + 1e-9)


@pytest.mark.parametrize("target", ["trn1", "trn2"])
@pytest.mark.parametrize("name", KERNELS)
def test_no_two_instructions_overlap_on_an_engine_and_every_producer_is_done(
    name: str, target: str
) -> None:
    kernel, arrays = KERNELS[name]
    found = scheduled(kernel, *arrays, target=target)
    lanes: dict[str, list[tuple[float, float]]] = {}
    for step in found.steps:
        lanes.setdefault(step.event.engine.name, []).append((step.start, step.end))
    for lane in lanes.values():
        lane.sort()
        for (_, end), (start, _) in pairwise(lane):
            assert start >= end - 1e-12
    tracker, steps = Tracker(), {step.event.index: step for step in found.steps}
    waits = 0
    for step in found.steps:
        for index, kind in tracker.wait_for(step.event):
            waits += 1
            limit = steps[index].done if kind is Kind.RAW else steps[index].end
            assert step.start >= limit - 1e-12
    assert waits > len(found.steps) / 2


def test_a_serial_chain_is_the_sum_of_its_parts() -> None:
    def kernel() -> None:
        tile = nl.ndarray((128, 512), nl.float32)
        nisa.memset(tile, 1.0, engine=V)
        for _ in range(4):
            nisa.activation(tile, nl.exp, tile)
            nisa.reciprocal(tile, tile)

    found = scheduled(kernel)
    v, s = 0.96e9, 1.2e9
    expected = (512 + 100) / v + 4 * ((512 + 100) / s + (4096 + 100) / v)
    assert found.length == pytest.approx(expected)
    assert found.critical_path == pytest.approx(expected)


def independent() -> None:
    for _ in range(8):
        nisa.memset(nl.ndarray((128, 1000), nl.float32), 1.0, engine=V)
        nisa.iota(nl.ndarray((128, 850), nl.float32), [[1, 850]])


def test_independent_engines_overlap() -> None:
    found = scheduled(independent)
    assert found.busy[0, "vector"] == pytest.approx(8 * 1000 / 0.96e9)
    assert found.busy[0, "gpsimd"] == pytest.approx(8 * 1000 / 1.2e9)
    assert found.length == pytest.approx(8 * 1000 / 0.96e9 + 100 / 0.96e9)


def test_vector_and_gpsimd_share_the_sbuf_port_of_gen2() -> None:
    found = scheduled(independent, target="trn1")
    both = 8 * 1000 / 1.12e9 + 8 * 1000 / 1.4e9
    assert found.lower_bound == pytest.approx(both)
    assert found.length == pytest.approx(both, rel=0.02)


def test_vector_and_scalar_share_the_psum_port_of_gen2() -> None:
    def kernel() -> None:
        one, two = (nl.ndarray((128, 512), nl.float32, buffer=nl.psum) for _ in range(2))
        nisa.memset(one, 1.0, engine=V)
        nisa.memset(two, 1.0, engine=V)
        for _ in range(6):
            nisa.tensor_copy(nl.ndarray((128, 512), nl.float32), one, engine=V)
            nisa.activation(nl.ndarray((128, 512), nl.float32), nl.exp, two)

    shared, own = scheduled(kernel, target="trn1"), scheduled(kernel, target="trn2")
    assert shared.lower_bound == pytest.approx(8 * 512 / 1.12e9 + 6 * 512 / 1.4e9)
    assert own.lower_bound == pytest.approx(8 * 512 / 0.96e9)


def test_an_overwrite_waits_for_the_last_read() -> None:
    def kernel() -> None:
        tile, out = nl.ndarray((128, 4096), nl.float32), nl.ndarray((128, 4096), nl.float32)
        nisa.memset(tile, 1.0, engine=V)
        nisa.activation(out, nl.exp, tile)
        nisa.memset(tile, 2.0, engine=V)  # VectorE is free long before ScalarE has read

    first, read, write = scheduled(kernel).steps
    assert read.start == pytest.approx(first.done)
    assert write.start == pytest.approx(read.end)


def test_another_part_of_the_tile_does_not_wait() -> None:
    def kernel() -> None:
        tile, out = nl.ndarray((128, 4096), nl.float32), nl.ndarray((128, 2048), nl.float32)
        nisa.memset(tile, 1.0, engine=V)
        nisa.activation(out, nl.exp, tile[:, 0:2048])
        nisa.memset(tile[:, 2048:], 2.0, engine=V)

    first, read, write = scheduled(kernel).steps
    assert write.start == pytest.approx(first.end)
    assert write.start < read.end


def test_an_engine_runs_in_program_order() -> None:
    def kernel() -> None:
        slow, fast = nl.ndarray((128, 4096), nl.float32), nl.ndarray((128, 8), nl.float32)
        nisa.iota(slow, [[1, 4096]])
        nisa.reciprocal(slow, slow)
        nisa.memset(fast, 1.0, engine=V)  # could run at once, but stands behind in VectorE's queue

    _, waiting, behind = scheduled(kernel).steps
    assert behind.start == pytest.approx(waiting.end)


def test_depends_on_is_obeyed() -> None:
    def kernel() -> None:
        slow = nisa.iota(nl.ndarray((128, 4096), nl.float32), [[1, 4096]])
        nisa.memset(nl.ndarray((128, 8), nl.float32), 1.0, engine=V).depends_on(slow)

    slow, after = scheduled(kernel).steps
    assert after.start == pytest.approx(slow.done)


def test_column_blocks_of_one_hbm_tensor_do_not_meet() -> None:
    def kernel(x: Any) -> Any:
        out = nl.ndarray((128, 512), nl.float32, buffer=nl.shared_hbm)
        for at in (0, 256):
            nisa.dma_copy(out[:, at : at + 256], x[:, at : at + 256])
        nisa.dma_copy(out[:, 128:384], x[:, 128:384])
        return out

    left, right, across = (event.writes[0] for event in ran(kernel, ONES).events)
    assert not overlap(left, right)
    assert not overlap(right, left)
    assert overlap(left, across)
    assert overlap(across, right)
    assert left.region[3] > right.region[2]  # as spans of bytes they do meet


def test_a_column_block_does_not_stand_for_what_lies_between_its_rows() -> None:
    def kernel(x: Any) -> Any:
        out = nl.ndarray((128, 512), nl.float32, buffer=nl.shared_hbm)
        back = nl.ndarray((127, 256), nl.float32)
        nisa.dma_copy(out[0:127, 256:512], x[0:127, 256:512])
        nisa.dma_copy(out[:, 0:256], x[:, 0:256])  # as a span of bytes it covers the first
        nisa.dma_copy(back, out[0:127, 256:512])
        nisa.dma_copy(out[127:128, 256:512], x[127:128, 256:512])
        return out

    events, tracker = ran(kernel, ONES).events, Tracker()
    assert [tracker.wait_for(event) for event in events] == [set(), set(), {(0, Kind.RAW)}, set()]


def test_a_dma_is_used_after_its_latency() -> None:
    def kernel(x: Any) -> None:
        tile = nl.ndarray((128, 512), nl.float32)
        nisa.dma_copy(tile, x)
        nisa.reciprocal(tile, tile)

    load, use = scheduled(kernel, ONES).steps
    assert load.transfer is not None
    assert use.start == pytest.approx(load.transfer.busy + 1.9e-6)


def test_a_store_that_waits_does_not_hold_up_the_next_load() -> None:
    def kernel(x: Any) -> Any:
        out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
        one, two = (nl.ndarray((128, 512), nl.float32) for _ in range(2))
        nisa.dma_copy(one, x)
        nisa.reciprocal(one, one)
        nisa.dma_copy(out, one)
        nisa.dma_copy(two, x)
        return out

    first, compute, store, second = scheduled(kernel, ONES).steps
    assert second.start == pytest.approx(first.end)
    assert store.start == pytest.approx(compute.done)


def test_a_loaded_register_comes_before_the_dma_that_may_use_it() -> None:
    def kernel(x: Any, at: Any) -> None:
        register = nisa.register_alloc(at)
        view = x.ap([[512, 1], [1, 512]], scalar_offset=register)
        nisa.dma_copy(nl.ndarray((1, 512), nl.float32), view)

    load, copy = scheduled(kernel, ONES, np.zeros((1, 1), np.int32)).steps
    assert load.event.op == "register_load"
    assert copy.start >= load.done > 0


def test_launches_of_a_session_follow_each_other() -> None:
    def kernel() -> None:
        nisa.memset(nl.ndarray((128, 512), nl.float32), 1.0, engine=V)
        nisa.iota(nl.ndarray((128, 512), nl.float32), [[1, 512]])

    with session(target="trn2") as run:
        jit(kernel)()
        once = schedule(run.ledger.events, run.generation)
        jit(kernel)()
    firsts = [first for first, _ in run.ledger.launches]
    twice = schedule(run.ledger.events, run.generation, firsts)
    assert twice.length == pytest.approx(2 * once.length)
    assert twice.critical_path <= twice.length


def barrier(x: Any) -> Any:
    between = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
    me = nl.program_id(0)
    tile = nl.ndarray((64, 512), x.dtype)
    nisa.dma_copy(tile, x[64 * me : 64 * me + 64])
    for _ in range(1 + 5 * me):  # core 1 is the slow one
        nisa.reciprocal(tile, tile)
    nisa.dma_copy(between[64 * me : 64 * me + 64], tile)
    nisa.core_barrier(between, (0, 1))
    other = 64 - 64 * me
    nisa.dma_copy(tile, between[other : other + 64])
    return between


def test_cores_wait_for_each_other_at_a_barrier() -> None:
    found = scheduled(barrier, ONES, cores=2)
    steps = [[s for s in found.steps if s.event.core == core] for core in (0, 1)]
    slow = next(s for s in steps[1] if s.event.op == "dma_copy" and s.event.writes[0].buffer
                is nl.shared_hbm)  # fmt: skip
    for core in steps:
        meeting = next(s for s in core if s.event.op == "core_barrier")
        assert meeting.start == pytest.approx(slow.done)
        assert core[-1].start >= meeting.done
    assert steps[0][1].start == pytest.approx(steps[1][1].start)  # before it they run side by side


def test_a_barrier_waits_for_work_that_has_nothing_to_do_with_its_data() -> None:
    def kernel() -> None:
        tile = nl.ndarray((128, 512), nl.float32)
        nisa.memset(tile, 1.0, engine=V)
        for _ in range(1 + 5 * nl.program_id(0)):
            nisa.reciprocal(tile, tile)
        nisa.core_barrier(None, (0, 1))

    found = scheduled(kernel, cores=2)
    last = max(step.done for step in found.steps if step.event.op == "reciprocal")
    meetings = [step.start for step in found.steps if step.event.op == "core_barrier"]
    assert meetings == pytest.approx([last, last])
    assert found.critical_path == pytest.approx(found.length)


def test_an_exchange_starts_when_both_are_ready() -> None:
    def kernel() -> None:
        me = nl.program_id(0)
        mine, other = (nl.ndarray((128, 512), nl.float32) for _ in range(2))
        nisa.memset(mine, 1.0, engine=V)
        for _ in range(5 * me):
            nisa.reciprocal(mine, mine)
        nisa.sendrecv(mine, other, 1 - me, 1 - me, 0)

    found = scheduled(kernel, cores=2)
    one, two = (step for step in found.steps if step.event.op == "sendrecv")
    last = max(s.done for s in found.steps if s.event.op == "reciprocal")
    assert one.start == pytest.approx(two.start) == pytest.approx(last)


def test_a_timeline_fills_gaps() -> None:
    line = Timeline()
    line.book(0.0, 1.0)
    line.book(3.0, 1.0)
    assert line.fit(0.0, 2.0) == 1.0
    assert line.fit(0.0, 2.5) == 4.0
    line.book(1.0, 2.0)
    assert (line.starts, line.ends) == ([0.0], [4.0])


def test_back_to_back_matmuls_into_one_bank_do_not_wait_for_the_result() -> None:
    def kernel() -> None:
        left, right = nl.ndarray((128, 128), nl.bfloat16), nl.ndarray((128, 512), nl.bfloat16)
        nisa.memset(left, 1.0)
        nisa.memset(right, 1.0)
        out = nl.ndarray((128, 512), nl.float32, buffer=nl.psum)
        for k in range(4):
            nisa.nc_matmul(out, left, right, accumulate=k > 0)

    found = scheduled(kernel)
    assert found.steps[-1].end - found.steps[2].start == pytest.approx(4 * 512 / 2.4e9)


def test_a_full_overwrite_stands_for_everything_below_it() -> None:
    def kernel() -> None:
        tile = nl.ndarray((128, 8), nl.float32)
        for _ in range(3):
            nisa.memset(tile, 1.0)

    events, tracker = ran(kernel).events, Tracker()
    assert [sorted(i for i, _ in tracker.wait_for(event)) for event in events] == [[], [0], [1]]
    partial = replace(events[0], index=9, writes=(replace(events[0].writes[0], strides=(8, 0)),))
    assert tracker.wait_for(partial) == {(2, Kind.WAW)}
