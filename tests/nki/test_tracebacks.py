"""Where an error points: the kernel's own lines, the allocation, the barrier."""

from typing import Any

import pytest

from nki_kernels.simulator import NkiValidationError, NkiWarning, jit, session
from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from tests.nki.cases.refused import sb


def test_an_error_of_the_kernel_itself_keeps_its_traceback() -> None:
    def helper() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        jit(lambda: helper())()
    assert caught.traceback[-1].name == "helper"


def test_the_cause_of_an_error_of_the_kernel_is_kept() -> None:
    def kernel() -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise RuntimeError("second") from error

    with pytest.raises(RuntimeError, match="second") as caught:
        jit(kernel)()
    assert isinstance(caught.value.__cause__, KeyError)
    assert [entry.name for entry in caught.traceback][-2:] == ["kernel", "kernel"]


def test_a_traceback_in_a_run_time_loop_has_no_frame_of_the_simulator() -> None:
    def body(i: Any) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        jit(lambda: nl.fori_loop(0, 2, body))()
    files = {entry.frame.code.path.as_posix() for entry in caught.traceback}
    assert files == {__file__}


def test_wrong_arguments_of_a_kernel_are_a_type_error_that_names_it() -> None:
    def kernel(x: Any) -> None:
        pass

    with pytest.raises(TypeError, match=r"kernel\(\) missing a required argument: 'x'"):
        jit(kernel)()


def in_hbm() -> Any:
    sb(8, 8)
    out = nl.ndarray((8, 8), nl.float32, buffer=nl.hbm)
    nisa.dma_copy(out, sb(8, 8))
    return out


def untouched() -> Any:
    sb(8, 8)
    return nl.ndarray((8, 8), nl.float32, buffer=nl.shared_hbm)


def waits_alone() -> None:
    if nl.program_id(0) == 0:
        nisa.core_barrier(None)


@pytest.mark.parametrize(
    ("kernel", "offset"),
    [(in_hbm, 2), (untouched, 2)],
    ids=["output-buffer", "output-unwritten"],
)
def test_a_refusal_after_the_run_names_the_allocation(kernel: Any, offset: int) -> None:
    with session(target="trn2", strict=True), pytest.raises(NkiValidationError) as caught:
        jit(kernel)()
    assert caught.value.line == f"{__file__}:{kernel.__code__.co_firstlineno + offset}"


def test_too_much_in_sbuf_names_the_largest_tile() -> None:
    def kernel() -> None:
        small = nl.ndarray((128, 1024), nl.float32)
        large = nl.ndarray((128, 50000), nl.float32)
        middle = nl.ndarray((128, 9000), nl.float32)
        for tile in (small, large, middle):
            nisa.memset(tile, 0.0)
        for tile in (small, large, middle):
            nisa.memset(tile, 0.0)

    with session(target="trn2"), pytest.raises(NkiValidationError, match="sbuf-capacity") as caught:
        jit(kernel)()
    assert caught.value.line == f"{__file__}:{kernel.__code__.co_firstlineno + 2}"


def test_a_core_that_waits_for_one_that_has_ended_is_named() -> None:
    with session(target="trn2"), pytest.raises(NkiValidationError, match="core 1 ended") as caught:
        jit(waits_alone)[2]()
    assert caught.value.line == f"{__file__}:{waits_alone.__code__.co_firstlineno + 2}"


def test_options_of_jit_have_no_effect_and_that_is_said_once() -> None:
    @jit(mode="simulation")
    def kernel() -> None:
        pass

    with session(), pytest.warns(NkiWarning, match=r"jit-option") as caught:
        [kernel() for _ in range(2)]
    assert len(caught) == 1
    with session(strict=True), pytest.raises(NkiValidationError, match=r"nki.jit\(mode\)"):
        kernel[1]()
    with pytest.raises(NkiValidationError, match=r"compile_config.*got speed"):
        jit(speed=3)
