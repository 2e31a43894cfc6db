"""Definedness, fill, capacity over live ranges, inputs and outputs."""

from typing import Any

import numpy as np
import pytest

from nki_kernels.simulator import NkiValidationError, NkiWarning, jit, session
from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from nki_kernels.simulator.memory import Buffer
from nki_kernels.simulator.nki_typing import mutable_tensor

STRICT = {"target": "trn2", "strict": True}


def test_what_nobody_wrote_is_nan_or_four() -> None:
    def kernel() -> None:
        assert np.isnan(nl.ndarray((4, 4), nl.bfloat16).array().astype(np.float32)).all()
        assert (nl.ndarray((4, 4), nl.int16).array() == 4).all()

    jit(kernel)()


def test_definedness_is_kept_per_element() -> None:
    def kernel(part: Any) -> None:
        tile = nl.ndarray((8, 8), nl.float32)
        nisa.memset(tile[:, 0:8:2], 1.0)
        nisa.tensor_copy(nl.ndarray((8, 4), nl.float32), tile[:, 0:8:2])
        nisa.tensor_copy(nl.ndarray((8, 2), nl.float32), tile[:, part])

    with session(**STRICT):
        with pytest.raises(NkiValidationError, match="read-undefined"):
            jit(kernel)(slice(2, 4))
        jit(kernel)(slice(2, 5, 2))


def test_definedness_follows_bytes_through_a_bit_cast() -> None:
    def kernel(halves: int) -> None:
        tile = nl.ndarray((8, 4), nl.float32)
        for half in range(halves):
            nisa.memset(tile.view(nl.uint16)[:, half::2], 1)
        nisa.tensor_copy(nl.ndarray((8, 4), nl.float32), tile)

    with session(**STRICT):
        with pytest.raises(NkiValidationError, match="read-undefined"):
            jit(kernel)(1)
        jit(kernel)(2)


def test_tiles_live_from_first_to_last_use_not_until_the_end() -> None:
    def kernel() -> None:
        tiles = [nl.ndarray((128, 20 * 1024), nl.float32) for _ in range(6)]
        for tile in tiles:
            nisa.memset(tile, 1.0)
            nisa.tensor_scalar(tile, tile, op0=nl.add, operand0=1.0)

    with session(**STRICT) as run:
        jit(kernel)()
    assert run.ledger.peak(Buffer.sbuf)[0] == 80 * 1024


def test_a_capacity_refusal_names_the_tiles() -> None:
    def kernel() -> None:
        kept = [nl.zeros((128, 20 * 1024), nl.float32, name=f"big{i}") for i in range(3)]
        nisa.tensor_tensor(kept[0], kept[1], kept[2], op=nl.add)

    with session(**STRICT), pytest.raises(NkiValidationError, match=r"big2.*sbuf-capacity"):
        jit(kernel)()
    with session(target="trn3", strict=True):
        jit(kernel)()


@pytest.mark.parametrize("strided", [False, True])
def test_a_mutable_input_is_written_in_place(strided: bool) -> None:
    def kernel(cache: mutable_tensor, new: Any) -> None:
        nisa.dma_copy(cache[1:2], new)

    base = np.zeros((4, 8), np.float32)
    cache = base[:, ::2] if strided else base
    with session(**STRICT):
        jit(kernel)(cache, np.ones((1, cache.shape[1]), np.float32))
    expected = np.zeros((4, cache.shape[1]), np.float32)
    expected[1] = 1
    np.testing.assert_array_equal(cache, expected)


def test_an_undeclared_write_reaches_the_input_with_a_warning() -> None:
    def kernel(cache: Any) -> None:
        nisa.dma_copy(cache[1:2], nl.full((1, 8), 1.0, nl.float32))

    cache = np.zeros((4, 8), np.float32)
    with session(target="trn2"), pytest.warns(NkiWarning, match="undeclared-write"):
        jit(kernel)(cache)
    assert cache.sum() == 8


def test_an_output_is_a_copy_and_an_input_is_left_alone() -> None:
    def kernel(x: Any) -> Any:
        out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
        tile = nl.load(x)
        nisa.tensor_scalar(tile, tile, op0=nl.add, operand0=1.0)
        nl.store(out, tile)
        return out, {"not a tensor": 3}

    x = np.zeros((4, 8), np.float32)
    with session(**STRICT):
        found, other = jit(kernel)(x)
    assert found.sum() == 32
    assert x.sum() == 0
    assert other == {"not a tensor": 3}


def test_two_cores_share_outputs_and_know_who_they_are() -> None:
    def kernel(x: Any) -> Any:
        out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
        half = x.shape[0] // nl.num_programs(0)
        rows = nl.ds(nl.program_id(0) * half, half)
        tile = nl.load(x[rows])
        nisa.tensor_scalar(tile, tile, op0=nl.multiply, operand0=1.0 + nl.program_id(0))
        nisa.dma_copy(out[rows], tile)
        return out

    x = np.ones((8, 4), np.float32)
    with session(**STRICT) as run:
        found = jit(kernel)[2](x)
    np.testing.assert_array_equal(found[:, 0], [1] * 4 + [2] * 4)
    assert {event.core for event in run.ledger.events} == {0, 1}
    with session(target="trn1"), pytest.raises(NkiValidationError, match="grid"):
        jit(kernel)[2](x)
