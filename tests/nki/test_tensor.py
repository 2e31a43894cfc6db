"""Indexing, views and access patterns against numpy, and what they refuse."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nki_kernels.simulator import NkiValidationError, jit, session
from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from nki_kernels.simulator.views import reshaped_strides

X = np.arange(8 * 4 * 6, dtype=np.float32).reshape(8, 4, 6)


def through(view: Callable[[Any], Any], array: Any = X, *, hbm: bool = False) -> Any:
    """What a view of a tile (or HBM tensor) of `array` reads."""
    found = []

    def kernel(x: Any) -> None:
        source = x if hbm else nl.load(x)
        found.append(view(source).read().copy())

    with session(target="trn2", strict=True):
        jit(kernel)(array)
    return found[0]


VIEWS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "slice": (lambda t: t[2:6, 1:4:2, ...], X[2:6, 1:4:2]),
    "negative": (lambda t: t[:, -1, -3:-1], X[:, -1, -3:-1]),
    "ds": (lambda t: t[nl.ds(2, 3), :, nl.ds(1, 2)], X[2:5, :, 1:3]),
    "int on axis 0 keeps it": (lambda t: t[3], X[3:4]),
    "int on a free axis drops it": (lambda t: t[:, 2], X[:, 2]),
    "two axes stay": (lambda t: t[:, 2, 5], X[:, 2, 5:6]),
    "all ints": (lambda t: t[1, 2, 5], X[1:2, 2, 5:6]),
    "slice method": (lambda t: t.slice(2, 1, 6, 2), X[:, :, 1:6:2]),
    "select": (lambda t: t.select(1, 2), X[:, 2]),
    "permute": (lambda t: t.permute((0, 2, 1)), X.transpose(0, 2, 1)),
    "broadcast": (lambda t: t[:, 0:1].broadcast(1, 3), np.repeat(X[:, 0:1], 3, axis=1)),
    "expand and squeeze": (lambda t: t.expand_dim(2).squeeze_dim(2), X),
    "reshape": (lambda t: t.reshape((8, 3, -1)), X.reshape(8, 3, 8)),
    "reshape_dim": (lambda t: t.reshape_dim(2, (2, -1)), X.reshape(8, 4, 2, 3)),
    "flatten_dims": (lambda t: t.flatten_dims(1, 2), X.reshape(8, 24)),
    "rearrange": (
        lambda t: t.rearrange(("p", "a", ("b", "c")), ("p", "c", ("a", "b")), {"b": 2}),
        X.reshape(8, 4, 2, 3).transpose(0, 3, 1, 2).reshape(8, 3, 8),
    ),
    "ap": (lambda t: t.ap([[24, 8], [1, 5], [6, 4]], offset=1), X[:, :, 1:].transpose(0, 2, 1)),
    "ap composes with the view's offset": (
        lambda t: t[:, 1:].ap([[24, 8], [1, 2]], offset=2),
        X[:, 1, 2:4],
    ),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_reads_what_numpy_reads(name: str) -> None:
    view, expected = VIEWS[name]
    np.testing.assert_array_equal(through(view), expected)


def test_hbm_ints_drop_their_axis_and_rows_can_be_replicated() -> None:
    np.testing.assert_array_equal(through(lambda t: t[3, :, 5], hbm=True), X[3, :, 5])
    rows = through(lambda t: t.ap([[0, 16], [1, 6]], offset=12), hbm=True)
    np.testing.assert_array_equal(rows, np.repeat(X[0, 2:3], 16, axis=0))
    np.testing.assert_array_equal(
        through(lambda t: t.permute((2, 0, 1)), hbm=True), X.transpose(2, 0, 1)
    )


def test_view_of_a_dtype_is_a_bit_cast() -> None:
    found = through(lambda t: t.view(nl.bfloat16)[:, :, 1::2])
    np.testing.assert_array_equal(
        found.view(np.uint16), (X.view(np.uint32) >> 16).astype(np.uint16)
    )
    assert found.dtype == ml_dtypes.bfloat16
    ints = through(lambda t: t.view(nl.int32))
    np.testing.assert_array_equal(ints, X.view(np.int32))


def test_reshape_of_strided_views_is_numpys_or_a_refusal() -> None:
    base = np.zeros((4, 6, 8), np.uint8)
    for view in (base, base[:, ::2], base[:, :, :4], base[:, :, ::2], base.transpose(0, 2, 1)):
        for shape in [(view.size,), (2, -1), (4, -1, 2), (8, -1, 4), (4, 2, 3, -1)]:
            if view.size % abs(int(np.prod(shape))):
                continue
            target = view.reshape(shape)
            mine = reshaped_strides(view.shape, view.strides, target.shape)
            if np.shares_memory(target, base):
                big = [i for i, n in enumerate(target.shape) if n > 1]
                assert mine is not None
                assert [mine[i] for i in big] == [target.strides[i] for i in big]
            else:
                assert mine is None


def gathered(rows: list[int], *, skip: bool = False, scatter: bool = False) -> Any:
    table = np.arange(40, dtype=np.float32).reshape(5, 8)
    index = np.array(rows, np.int32).reshape(-1, 1)

    def kernel(t: Any, i: Any) -> Any:
        at = nl.load(i)
        tile = nl.full((len(rows), 8), -1.0, nl.float32)
        out = nl.ndarray((5, 8) if scatter else tile.shape, nl.float32, buffer=nl.shared_hbm)
        view = (out if scatter else t).ap([[8, len(rows)], [1, 8]], vector_offset=at)
        mode = nisa.oob_mode.skip if skip else nisa.oob_mode.error
        if scatter:
            nisa.dma_copy(out, t)
            nisa.dma_copy(view, tile, oob_mode=mode)
        else:
            nisa.dma_copy(tile, view, oob_mode=mode)
            nisa.dma_copy(out, tile)
        return out

    with session(target="trn2", strict=True):
        return table, jit(kernel)(table, index)


def test_a_vector_offset_gathers_and_scatters_rows() -> None:
    table, found = gathered([4, 0, 4])
    np.testing.assert_array_equal(found, table[[4, 0, 4]])
    table, found = gathered([3, 1], scatter=True)
    expected = table.copy()
    expected[[3, 1]] = -1
    np.testing.assert_array_equal(found, expected)


def test_skip_leaves_what_lies_outside_untouched() -> None:
    table, found = gathered([4, 9, 0], skip=True)
    np.testing.assert_array_equal(found[[0, 2]], table[[4, 0]])
    np.testing.assert_array_equal(found[1], np.full(8, -1))
    table, found = gathered([9, 2], skip=True, scatter=True)
    expected = table.copy()
    expected[2] = -1
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(NkiValidationError, match="dma-bounds"):
        gathered([9, 2], scatter=True)


def test_a_scalar_offset_counts_rows_and_is_read_at_run_time() -> None:
    def kernel(t: Any, i: Any) -> Any:
        at = nl.load(i)
        view = t.ap([[8, 2], [1, 8]], scalar_offset=at)
        out = nl.ndarray((4, 8), t.dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(out[0:2], view)
        nisa.tensor_scalar(at, at, op0=nl.add, operand0=2)
        nisa.dma_copy(out[2:4], view)
        return out

    table = np.arange(40, dtype=np.float32).reshape(5, 8)
    with session(target="trn2", strict=True):
        found = jit(kernel)(table, np.array([[1]], np.int32))
    np.testing.assert_array_equal(found, table[[1, 2, 3, 4]])


def test_a_loop_index_is_an_offset() -> None:
    def kernel(t: Any) -> Any:
        out = nl.ndarray(t.shape, t.dtype, buffer=nl.shared_hbm)

        def body(i: Any) -> None:
            row = [[8, 1], [1, 8]]
            nisa.dma_copy(out.ap(row, scalar_offset=i), t.ap(row, scalar_offset=i))

        nl.fori_loop(0, 5, body)
        return out

    table = np.arange(40, dtype=np.float32).reshape(5, 8)
    for nki in ("0.6", "0.7"):
        with session(target="trn2", nki=nki, strict=True):
            np.testing.assert_array_equal(jit(kernel)(table), table)


def added(rows: list[int], *, unique: bool) -> Any:
    """Ones added to some rows of a table by dma_compute."""

    def kernel(t: Any, i: Any) -> Any:
        at, ones = nl.load(i), nl.ones((len(rows), 8), nl.bfloat16)
        out = nl.ndarray(t.shape, t.dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(out, t)
        view = out.ap([[8, len(rows)], [1, 8]], vector_offset=at)
        nisa.dma_compute(view, [view, ones], nl.add, unique_indices=unique)
        return out

    table = np.arange(40, dtype=np.float32).reshape(5, 8)
    with session(target="trn2", strict=True):
        return jit(kernel)(table, np.array(rows, np.int32).reshape(-1, 1)) - table


def test_a_dma_adds_to_rows_and_equal_rows_add_up_when_asked() -> None:
    np.testing.assert_array_equal(added([3, 1], unique=True)[:, 0], [0, 1, 0, 1, 0])
    np.testing.assert_array_equal(added([3, 1, 3], unique=False)[:, 0], [0, 1, 0, 2, 0])


def test_a_dma_adds_gathered_rows_to_a_tile() -> None:
    table = np.arange(40, dtype=np.float32).reshape(5, 8)

    def kernel(t: Any, i: Any) -> Any:
        tile = nl.ones((2, 8), nl.float32)
        rows = t.ap([[8, 2], [1, 8]], vector_offset=nl.load(i))
        nisa.dma_compute(tile, [tile, rows, tile], nl.add)
        out = nl.ndarray(tile.shape, tile.dtype, buffer=nl.shared_hbm)
        nl.store(out, tile)
        return out

    with session(target="trn2", strict=True):
        found = jit(kernel)(table, np.array([[4], [2]], np.int32))
    np.testing.assert_array_equal(found, table[[4, 2]] + 2)
