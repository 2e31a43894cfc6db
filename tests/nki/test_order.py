"""Instructions that wait for others by their handle or name: what the schedule makes of it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nki_kernels.simulator import NkiValidationError, jit, session
from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from nki_kernels.simulator.cost.schedule import Schedule, schedule

V = nisa.engine.vector
RUNTIME, SCHEDULE = nisa.dependency.runtime, nisa.dependency.schedule


def scheduled(kernel: Any, *arrays: Any) -> Schedule:
    with session(target="trn2") as run:
        kernel(*arrays)
    return schedule(run.ledger.events, run.generation)


def tile(columns: int) -> Any:
    return nl.ndarray((128, columns), nl.float32)


def ones() -> Any:
    """A tile that no instruction had to fill."""
    made = tile(64)
    made.write(np.ones((128, 64)))
    return made


def slow_and_fast() -> tuple[Any, Any]:
    """Two instructions without common data, on different engines."""
    slow = nisa.iota(tile(4096), [[1, 4096]], name="slow")
    fast = nisa.memset(tile(512), 1.0, engine=V, name="fast")
    return slow, fast


SLOW, FAST = (150 + 4096) / 1.2e9, 512 / 0.96e9  # seconds that they occupy their engines
READY_SLOW, READY_FAST = SLOW + 100 / 1.2e9, FAST + 100 / 0.96e9  # until the result can be used


def test_without_a_dependency_both_start_at_once() -> None:
    found = scheduled(jit(lambda: slow_and_fast() and None))
    assert [step.start for step in found.steps] == [0.0, 0.0]
    assert found.length == pytest.approx(READY_SLOW)


@pytest.mark.parametrize("kind", [None, RUNTIME])
def test_a_handle_that_depends_on_another_lengthens_the_schedule(kind: Any) -> None:
    def kernel() -> None:
        slow, fast = slow_and_fast()
        assert fast.depends_on(slow, kind=kind) is fast

    found = scheduled(jit(kernel))
    assert found.steps[1].start == pytest.approx(READY_SLOW)
    assert found.length == pytest.approx(READY_SLOW + READY_FAST)
    assert found.critical_path == pytest.approx(READY_SLOW + READY_FAST)


def test_an_order_of_issue_lets_engines_overlap() -> None:
    def kernel() -> None:
        before = nisa.iota(tile(2048), [[1, 2048]])
        slow, fast = slow_and_fast()
        assert before.name is None
        fast.depends_on(slow, kind=SCHEDULE)

    before, slow, fast = scheduled(jit(kernel)).steps
    assert before.end == pytest.approx((150 + 2048) / 1.2e9)
    assert slow.start == fast.start == pytest.approx(before.end)


def test_an_instruction_can_wait_for_a_later_one() -> None:
    def kernel() -> None:
        slow, fast = slow_and_fast()
        slow.depends_on(fast)

    slow, fast = scheduled(jit(kernel)).steps
    assert fast.start == 0.0
    assert slow.start == pytest.approx(READY_FAST)


def test_what_reads_a_held_instruction_waits_too() -> None:
    def kernel() -> None:
        a, b = tile(512), tile(512)
        first = nisa.memset(a, 1.0, engine=V)
        nisa.activation(b, nl.exp, a)
        first.depends_on(nisa.iota(tile(4096), [[1, 4096]]))

    first, reader, slow = scheduled(jit(kernel)).steps
    assert first.start == pytest.approx(slow.done)
    assert reader.start == pytest.approx(first.done)


@pytest.mark.parametrize(
    "pairs", [[("fast", "slow")], [("fast", ["slow"])], (("fast", ("slow",)),)]
)
def test_a_kernel_with_a_schedule_waits_by_name(pairs: Any) -> None:
    kernel = jit(lambda: slow_and_fast() and None)
    found = scheduled(kernel.with_schedule(pairs))
    assert found.length == pytest.approx(READY_SLOW + READY_FAST)
    assert scheduled(kernel).length == pytest.approx(READY_SLOW), "the kernel itself is as it was"


def test_schedules_add_up_and_have_a_kind() -> None:
    def kernel() -> None:
        slow_and_fast()
        nisa.activation(tile(64), nl.exp, ones(), name="c")

    both = jit(kernel).with_schedule([("fast", "slow")]).with_schedule([("c", ["fast"])], SCHEDULE)
    slow, fast, last = scheduled(both).steps
    assert fast.start == pytest.approx(slow.done)
    assert last.start == pytest.approx(fast.start)


def test_a_schedule_does_not_change_what_is_computed() -> None:
    def kernel(x: Any) -> Any:
        a, b = nl.load(x), tile(16)
        nisa.reciprocal(b, a, name="recip")
        nisa.tensor_scalar(a, a, op0=nl.add, operand0=1.0, name="plus1")
        nisa.tensor_tensor(b, a, b, op=nl.add)
        out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
        nl.store(out, b)
        return out

    x = np.linspace(1, 2, 128 * 16, dtype=np.float32).reshape(128, 16)
    with session(target="trn2", strict=True):
        found = jit(kernel).with_schedule([("plus1", "recip")])(x)
    np.testing.assert_allclose(found, x + 1 + 1 / x, rtol=1e-6)


def on_two_cores() -> None:
    if nl.program_id(0) == 0:
        nisa.iota(tile(2048), [[1, 2048]])
    slow_and_fast()


def test_a_name_is_one_instruction_of_each_core() -> None:
    steps = scheduled(jit(on_two_cores)[2].with_schedule([("fast", "slow")])).steps
    named = {(step.event.core, step.event.name): step for step in steps}
    for core in (0, 1):
        assert named[core, "fast"].start == pytest.approx(named[core, "slow"].done)
    assert named[0, "slow"].start > named[1, "slow"].start == 0.0


def test_a_core_does_not_wait_for_what_another_core_runs() -> None:
    def kernel() -> None:
        if nl.program_id(0) == 0:
            nisa.iota(tile(4096), [[1, 4096]], name="slow")
        nisa.memset(tile(512), 1.0, engine=V, name="fast")

    steps = scheduled(jit(kernel)[2].with_schedule([("fast", "slow")])).steps
    starts = {step.event.core: step.start for step in steps if step.event.name == "fast"}
    assert starts == {0: pytest.approx(READY_SLOW), 1: 0.0}


def into_a_loop() -> None:
    x = tile(8)
    nl.fori_loop(0, 2, lambda i: nisa.memset(x, 1.0, name="slow") and None)
    nisa.memset(tile(8), 1.0, name="fast")


def test_a_schedule_over_the_border_of_a_loop_is_refused() -> None:
    refused(jit(into_a_loop).with_schedule([("fast", "slow")]), "one iteration of a run-time loop")


def test_names_in_a_loop_wait_within_their_iteration() -> None:
    def kernel() -> None:
        a, b = tile(4096), tile(512)

        def body(i: Any) -> None:
            nisa.iota(a, [[1, 4096]], name="slow")
            nisa.memset(b, 1.0, engine=V, name="fast")

        nl.fori_loop(0, 3, body)

    found = scheduled(jit(kernel).with_schedule([("fast", "slow")]))
    assert found.length == pytest.approx(3 * (READY_SLOW + READY_FAST))


def test_iterations_of_a_run_time_loop_do_not_overlap() -> None:
    def work(a: Any, b: Any) -> None:
        nisa.iota(a, [[1, 4096]])
        nisa.reciprocal(b, a)

    def kernel(loop: Callable[[Any], None]) -> Any:
        def run() -> None:
            tiles = [(tile(4096), tile(4096)) for _ in range(4)]
            loop(tiles)

        return jit(run)

    def unrolled(tiles: Any) -> None:
        for pair in tiles:
            work(*pair)

    def looped(tiles: Any) -> None:
        rest = iter(tiles)
        nl.fori_loop(0, 4, lambda i: work(*next(rest)))

    once = READY_SLOW + (8 * 4096 + 100) / 0.96e9
    assert scheduled(kernel(looped)).length == pytest.approx(4 * once)
    pipelined = READY_SLOW + (4 * 8 * 4096 + 100) / 0.96e9
    assert scheduled(kernel(unrolled)).length == pytest.approx(pipelined)


def test_a_block_without_reordering_starts_in_program_order() -> None:
    def kernel() -> None:
        x = tile(4096)
        nisa.iota(x, [[1, 4096]])
        with nl.no_reorder():
            nisa.reciprocal(x, x)
            with nl.no_reorder():
                nisa.memset(tile(64), 1.0, engine=nisa.engine.gpsimd)
            nisa.activation(tile(64), nl.exp, ones())
        nisa.activation(tile(64), nl.exp, ones())

    first, waiting, inner, behind, free = scheduled(jit(kernel)).steps
    assert waiting.start == pytest.approx(first.done)
    assert inner.start == behind.start == waiting.start
    assert free.event.issued_after == ()


def test_a_loop_inside_a_block_without_reordering_is_refused() -> None:
    def kernel() -> None:
        with nl.no_reorder():
            nl.fori_loop(0, 2, lambda i: None)

    refused(jit(kernel), "no_reorder inside the loop's body")


def refused(kernel: Any, expected: str, rule: str = "schedule") -> None:
    with (
        session(target="trn2"),
        pytest.raises(NkiValidationError, match=expected) as caught,
    ):
        kernel()
    assert caught.value.rule == rule


def circle() -> None:
    slow, fast = slow_and_fast()
    slow.depends_on(fast)
    fast.depends_on(slow, kind=SCHEDULE)


def itself() -> None:
    slow, _ = slow_and_fast()
    slow.depends_on(slow)


def against_the_data() -> None:
    x = tile(512)
    writer = nisa.memset(x, 1.0, engine=V)
    writer.depends_on(nisa.activation(tile(512), nl.exp, x))


@pytest.mark.parametrize("kernel", [circle, itself, against_the_data])
def test_instructions_that_wait_for_each_other_are_refused(kernel: Any) -> None:
    refused(jit(kernel), "in a circle")


def test_a_schedule_against_the_data_is_refused() -> None:
    def kernel() -> None:
        x = tile(512)
        nisa.memset(x, 1.0, engine=V, name="write")
        nisa.activation(tile(512), nl.exp, x, name="read")

    refused(jit(kernel).with_schedule([("write", "read")]), "in a circle.*'read'")


def over_the_border() -> None:
    made: list[Any] = []
    x, y = tile(8), tile(8)
    nl.fori_loop(0, 1, lambda i: made.append(nisa.memset(x, 1.0)))
    nisa.memset(y, 1.0).depends_on(made[0])


def behind_a_barrier() -> None:
    x = nl.ndarray((1, 8), nl.float32, buffer=nl.shared_hbm)
    first = nisa.memset(tile(8), 1.0)
    nisa.core_barrier(x)
    first.depends_on(nisa.memset(tile(8), 1.0))


def test_a_dependency_over_the_border_of_a_loop_or_a_barrier_is_refused() -> None:
    refused(jit(over_the_border), "one iteration of a run-time loop")
    refused(jit(behind_a_barrier)[2], "in a circle")


def test_a_producer_before_the_loop_is_obeyed() -> None:
    def kernel() -> None:
        slow = nisa.iota(tile(4096), [[1, 4096]])
        x = tile(512)
        nl.fori_loop(0, 2, lambda i: nisa.memset(x, 1.0, engine=V).depends_on(slow))

    slow, first, second = scheduled(jit(kernel)).steps
    assert first.start == pytest.approx(slow.done)
    assert second.start == pytest.approx(first.done)


def twice() -> None:
    for _ in range(2):
        nisa.memset(tile(8), 1.0, name="fast")
    nisa.memset(tile(8), 1.0, name="slow")


def test_names_that_are_unknown_or_not_unique_are_refused() -> None:
    kernel = jit(lambda: slow_and_fast() and None)
    refused(kernel.with_schedule([("fast", "quick")]), "one of fast, slow, got 'quick'")
    refused(jit(twice).with_schedule([("fast", "slow")]), "one instruction of a name")


def test_what_is_no_schedule_is_refused() -> None:
    kernel = jit(slow_and_fast)
    for pairs in (["ab"], [("fast",)], [("fast", 3)], [(1, "slow")]):
        refused(lambda pairs=pairs: kernel.with_schedule(pairs), "pairs of names", "signature")
    refused(jit(lambda: slow_and_fast()[0].depends_on("fast")), "handles", "signature")
    refused(
        jit(lambda: slow_and_fast()[0].depends_on(kind="runtime")), "dependency.runtime", "enum"
    )
    refused(lambda: kernel.with_schedule([("fast", "slow")], 2), "dependency.runtime", "enum")


def test_a_schedule_is_not_dropped_by_the_vendors_backend() -> None:
    kernel = jit(circle).with_schedule([("fast", "slow")])
    with (
        session(target="trn2", backend="vendor"),
        pytest.raises(NotImplementedError, match="got one for fast; call the kernel without it"),
    ):
        kernel()
