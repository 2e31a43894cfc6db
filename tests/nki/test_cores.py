"""Two logical cores in lock step: barrier, exchange, and cores that do not meet."""

from typing import Any

import numpy as np
import pytest

from nki_kernels.simulator import NkiValidationError, jit, session
from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl

X = np.arange(8, dtype=np.float32).reshape(2, 4)


def launch(kernel: Any, *arrays: Any) -> Any:
    with session(target="trn2", strict=True):
        return jit(kernel)[2](*arrays)


def test_a_core_sees_after_the_barrier_what_the_other_wrote() -> None:
    def kernel(x: Any) -> Any:
        between = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
        out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
        me = nl.program_id(0)
        nisa.dma_copy(between[me : me + 1], x[me : me + 1])
        nisa.core_barrier(between, (0, 1))
        nisa.dma_copy(out[me : me + 1], between[1 - me : 2 - me])
        return out

    np.testing.assert_array_equal(launch(kernel, X), X[::-1])


def test_sendrecv_exchanges_tiles() -> None:
    def kernel(x: Any) -> Any:
        out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
        me = nl.program_id(0)
        mine = nl.load(x[me : me + 1])
        for step in range(3):
            other = nl.ndarray(mine.shape, mine.dtype)
            nisa.sendrecv(mine, other, send_to_rank=1 - me, recv_from_rank=1 - me, pipe_id=step)
            mine = nl.add(other, 1.0 + me)
        nl.store(out[me : me + 1], mine)
        return out

    first, second = X
    expected = [second + 1 + 2 + 1, first + 2 + 1 + 2]
    np.testing.assert_array_equal(launch(kernel, X), expected)


def test_cores_that_do_not_meet_are_refused() -> None:
    def kernel(x: Any) -> None:
        if nl.program_id(0) == 0:
            nisa.core_barrier(x, (0, 1))

    with pytest.raises(NkiValidationError, match="core-barrier"):
        launch(kernel, X)


def test_the_error_of_one_core_is_raised_and_ends_the_other() -> None:
    def kernel(x: Any) -> None:
        nisa.core_barrier(x, (0, 1))
        if nl.program_id(0) == 1:
            raise KeyError("core 1")
        nisa.core_barrier(x, (0, 1))

    with pytest.raises(KeyError, match="core 1"):
        launch(kernel, X)


def test_without_a_grid_there_are_no_dimensions() -> None:
    def kernel() -> tuple[int, int]:
        return nl.program_ndim(), nl.num_programs()

    with session(target="trn2"):
        assert jit(kernel)() == (0, 1)
        assert jit(kernel)[2]() == (1, 2)
