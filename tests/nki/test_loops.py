"""Loops at run time: what they compute, what they leave visible, and what they refuse."""

from typing import Any

import numpy as np
import pytest

from nki_kernels.simulator import NkiValidationError, jit, session
from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl

BOTH = pytest.mark.parametrize("options", [{"nki": "0.6"}, {"nki": "0.7"}], ids=["0.6", "0.7"])


def collatz(start: Any) -> Any:
    """Steps from `start` to 1, by a loop on a register: as in the documentation, with state in
    SBUF."""
    value, steps = nl.load(start), nl.zeros((1, 1), nl.int32)
    odd, up = nl.ndarray((1, 1), nl.int32), nl.ndarray((1, 1), nl.int32)
    distance = nl.ndarray((1, 1), nl.int32)
    register = nisa.register_alloc()

    def condition(into: Any) -> None:
        nisa.tensor_scalar(distance, value, op0=nl.subtract, operand0=1)
        nisa.register_load(into, distance)

    def body(r: Any) -> Any:
        nisa.tensor_scalar(odd, value, op0=nl.bitwise_and, operand0=1)
        nisa.tensor_scalar(up, value, op0=nl.multiply, operand0=3, op1=nl.add, operand1=1)
        nisa.tensor_scalar(value, value, op0=nl.right_shift, operand0=1)
        nisa.tensor_copy_predicated(value, up, odd.view(nl.uint32))
        nisa.tensor_scalar(steps, steps, op0=nl.add, operand0=1)
        condition(r)
        return r

    condition(register)
    nl.while_loop(register, body)
    out = nl.ndarray((1, 1), nl.int32, buffer=nl.shared_hbm)
    nisa.dma_copy(out, steps)
    return out


def collatz_steps(value: int) -> int:
    steps = 0
    while value != 1:
        value, steps = (3 * value + 1 if value % 2 else value // 2), steps + 1
    return steps


@BOTH
@pytest.mark.parametrize("start", [1, 2, 6, 27])
def test_a_while_loop_runs_until_its_body_returns_zero(options: Any, start: int) -> None:
    with session(target="trn2", strict=True, **options):
        found = jit(collatz)(np.array([[start]], np.int32))
    assert found.item() == collatz_steps(start)


@BOTH
def test_a_body_gets_the_condition_as_a_copy_and_an_offset(options: Any) -> None:
    def kernel(x: Any) -> Any:
        out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(out, nl.zeros(x.shape, x.dtype))
        left, one = nl.full((1, 1), 3, nl.int32), nl.full((1, 1), 1, nl.int32)
        register = nisa.register_alloc(3)

        def body(r: Any) -> Any:
            row = [[8, 1], [1, 8]]
            nisa.dma_copy(out.ap(row, scalar_offset=r), x.ap(row, scalar_offset=r))
            nisa.tensor_tensor(left, left, one, op=nl.subtract)
            following = nisa.register_alloc(left)
            nisa.register_move(r, 77)
            return following

        nl.while_loop(register, body)
        nisa.register_store(left, register)  # the caller's is as it was
        nisa.dma_copy(out[0:1, 0:1], left)
        return out

    x = np.arange(40, dtype=np.int32).reshape(5, 8)
    expected = np.zeros_like(x)
    expected[1:4], expected[0, 0] = x[1:4], 3
    with session(target="trn2", strict=True, **options):
        np.testing.assert_array_equal(jit(kernel)(x), expected)


def test_each_iteration_of_a_loop_is_in_the_ledger() -> None:
    def kernel() -> None:
        tile = nl.zeros((4, 4), nl.float32)

        def body(i: Any) -> None:
            nisa.memset(tile, 1.0)

        for _ in range(2):
            nl.fori_loop(0, 2, body)

    with session(target="trn2") as run:
        jit(kernel)()
    assert [event.loop for event in run.ledger.events] == [None, (1, 0), (1, 1), (2, 0), (2, 1)]


def endless() -> None:
    nl.while_loop(nisa.register_alloc(1), lambda r: r)


def endless_register() -> None:
    register = nisa.register_alloc(1)
    while register:
        nisa.register_move(register, 2)


@pytest.mark.parametrize(("kernel", "nki"), [(endless, "0.7"), (endless_register, "0.5")])
def test_a_loop_that_never_ends_is_refused_with_its_bound(kernel: Any, nki: str) -> None:
    with (
        session(target="trn2", nki=nki, loop_limit=50),
        pytest.raises(NkiValidationError, match=r"within 50 iterations.*loop_limit") as caught,
    ):
        jit(kernel)()
    assert caught.value.rule == "endless-loop"


@pytest.mark.parametrize("count", [50, 51])
def test_a_loop_of_as_many_iterations_as_the_bound_runs(count: int) -> None:
    seen: list[int] = []

    def kernel() -> None:
        def body(r: Any) -> Any:
            seen.append(1)
            return nisa.register_alloc(count - len(seen))

        nl.while_loop(nisa.register_alloc(count), body)

    with session(target="trn2", loop_limit=50):
        if count <= 50:
            jit(kernel)()
        else:
            with pytest.raises(NkiValidationError, match="endless-loop"):
                jit(kernel)()
    assert len(seen) == 50


def test_a_bound_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="loop_limit: expected at least 1"), session(loop_limit=0):
        pass


def load64(n: Any) -> None:
    nl.fori_loop(0, nisa.scalar_load(n), lambda i: None)


LOOPS: dict[str, tuple[Any, str, str, str]] = {
    "a number as condition": (
        lambda n: nl.while_loop(3, lambda r: r),
        *("dtype", "a register of nisa.register_alloc", "0.7"),
    ),
    "a body that returns nothing": (
        lambda n: nl.while_loop(nisa.register_alloc(1), lambda r: None),
        *("dtype", "returns the next condition", "0.7"),
    ),
    "a loop inside a loop": (
        lambda n: nl.while_loop(
            nisa.register_alloc(1), lambda r: nl.while_loop(nisa.register_alloc(1), lambda q: q)
        ),
        *("nested-loop", "unroll one of them", "0.7"),
    ),
    "while_loop before 0.6": (
        lambda n: nl.while_loop(nisa.register_alloc(1), lambda r: r),
        *("nki-version", "0.6 or newer", "0.5"),
    ),
    "fori_loop before 0.6": (
        lambda n: nl.fori_loop(0, 2, lambda i: None),
        *("nki-version", "0.6 or newer", "0.5"),
    ),
    "a step of zero": (
        lambda n: nl.fori_loop(0, 2, lambda i: None, step=0),
        *("value", "above 0", "0.7"),
    ),
    "a fraction as bound": (
        lambda n: nl.fori_loop(0, 2.5, lambda i: None),
        *("dtype", "an int, a register", "0.7"),
    ),
    "64 bits as bound": (load64, "dtype", "32 bits", "0.7"),
}


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.filterwarnings("ignore::nki_kernels.simulator.NkiWarning")
def test_a_loop_that_the_device_does_not_have_is_refused(name: str) -> None:
    kernel, rule, expected, nki = LOOPS[name]
    with (
        session(target="trn2", nki=nki),
        pytest.raises(NkiValidationError, match=expected) as caught,
    ):
        jit(kernel)(np.array([[3]], np.int64))
    assert caught.value.rule == rule


def test_a_tensor_of_a_body_is_not_visible_outside() -> None:
    kept: list[Any] = []

    def kernel() -> None:
        def body(i: Any) -> None:
            kept.append(nl.zeros((4, 4), nl.float32))
            nisa.memset(kept[-1], 2.0)

        nl.fori_loop(0, 1, body)
        nisa.memset(kept[-1], 1.0)

    with (
        session(target="trn2"),
        pytest.raises(NkiValidationError, match="made outside of the run-time loop") as caught,
    ):
        jit(kernel)()
    assert caught.value.rule == "loop-scope"


def test_a_register_in_control_flow_of_a_body_is_refused_before_the_run() -> None:
    ran: list[int] = []

    def kernel() -> None:
        def body(r: Any) -> Any:
            if len(ran) > 5 and r:
                return r
            return nisa.register_alloc(0)

        ran.append(1)
        nl.while_loop(nisa.register_alloc(1), body)

    with (
        session(target="trn2"),
        pytest.raises(NkiValidationError, match="compile-time value in if") as caught,
    ):
        jit(kernel)()
    assert (caught.value.rule, ran) == ("tensor-value", [])
