"""Views whose address is known at run time only, against numpy, and what they refuse."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nki_kernels.simulator import NkiNotSimulated, NkiValidationError, jit, session
from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl

RNG = np.random.default_rng(11)
TABLE = RNG.standard_normal((6, 4, 8)).astype(np.float32)
ROWS = [5, 0, 3, 3]


def copied(view: Callable[[Any, Any], Any], table: Any, index: Any, **options: Any) -> Any:
    """What a DMA reads through `view(table, index tile)`."""

    def kernel(t: Any, i: Any) -> Any:
        source = view(t, nl.load(i))
        out = nl.ndarray(source.shape, source.dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(out, source)
        return out

    with session(**({"target": "trn2", "strict": True} | options)):
        return jit(kernel)(table, np.asarray(index, np.int32).reshape(-1, 1))


FLAT = TABLE.reshape(6, 32)
VIEWS: dict[str, tuple[Callable[[Any, Any], Any], Any, Any]] = {
    "vector_select": (lambda t, i: t.vector_select(0, i), ROWS, TABLE[ROWS]),
    "vector_select of a slice": (
        lambda t, i: t[1:6, 2:4].vector_select(0, i),
        [4, 0],
        TABLE[1:6, 2:4][[4, 0]],
    ),
    "vector_select with a step": (
        lambda t, i: t[::2].vector_select(0, i),
        [2, 1],
        TABLE[::2][[2, 1]],
    ),
    "vector_select of a part": (
        lambda t, i: t.reshape((3, 2, 32)).vector_select(0, i),
        [2, 0],
        TABLE.reshape(3, 2, 32)[[2, 0]],
    ),
    "views of chosen rows": (
        lambda t, i: t.vector_select(0, i).permute((0, 2, 1))[:, 1:5, 2].expand_dim(1),
        ROWS,
        TABLE[ROWS].transpose(0, 2, 1)[:, 1:5, 2][:, None],
    ),
    "chosen rows flattened": (
        lambda t, i: t.vector_select(0, i).reshape((4, 16, 2)).flatten_dims(1, 2),
        ROWS,
        FLAT[ROWS],
    ),
    "select of axis 0": (lambda t, i: t.select(0, i), [4], TABLE[4]),
    "select of an inner axis": (lambda t, i: t.select(1, i), [3], TABLE[:, 3]),
    "select of the last axis": (lambda t, i: t[1:, :, 2:].select(2, i), [5], TABLE[1:, :, 7]),
    "a slice of a selected one": (lambda t, i: t.select(0, i)[1:3], [2], TABLE[2, 1:3]),
    "ap, a scalar offset of the middle axis": (
        lambda t, i: t.ap([[32, 6], [1, 8]], scalar_offset=i, indirect_dim=1),
        [2],
        TABLE[:, 2],
    ),
    "ap of a slice counts the tensor's rows": (
        lambda t, i: t[:, 1:3].ap([[32, 2], [1, 16]], scalar_offset=i),
        [3],
        TABLE[3:5, 1:3].reshape(2, 16),
    ),
    "ap, a vector offset of a slice": (
        lambda t, i: t[:, 1:3].ap([[32, 4], [1, 16]], vector_offset=i),
        ROWS,
        TABLE[ROWS, 1:3].reshape(4, 16),
    ),
    "ap, a vector offset and an offset": (
        lambda t, i: t.ap([[32, 4], [8, 2], [1, 3]], offset=9, vector_offset=i),
        ROWS,
        TABLE[ROWS][:, 1:3, 1:4],
    ),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_run_time_view_reads_what_numpy_reads(name: str) -> None:
    view, index, expected = VIEWS[name]
    np.testing.assert_array_equal(copied(view, TABLE, index), expected)


def test_chosen_rows_are_written_and_others_kept() -> None:
    def kernel(t: Any, i: Any) -> Any:
        out = nl.ndarray(t.shape, t.dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(out, t)
        tile = nl.full((2, 4, 8), -1.0, nl.float32)
        nisa.dma_copy(out.vector_select(0, nl.load(i)), tile, oob_mode=nisa.oob_mode.skip)
        return out

    expected = TABLE.copy()
    expected[4] = -1
    with session(target="trn2", strict=True):
        found = jit(kernel)(TABLE, np.array([[4], [6]], np.int32))
    np.testing.assert_array_equal(found, expected)


def test_an_index_is_read_when_the_instruction_runs() -> None:
    def kernel(t: Any, i: Any) -> Any:
        out = nl.ndarray((2, 4, 8), t.dtype, buffer=nl.shared_hbm)
        at, tile = nl.load(i), nl.ndarray((4, 8), t.dtype)
        row, written = t.select(0, at), out.select(0, nisa.register_alloc(1))
        nisa.dma_copy(out[0], row)
        nisa.tensor_scalar(at, at, op0=nl.add, operand0=3)
        nisa.dma_copy(tile, row)
        nisa.dma_copy(written, tile)
        return out

    with session(target="trn2", strict=True):
        found = jit(kernel)(TABLE, np.array([[1]], np.int32))
    np.testing.assert_array_equal(found, TABLE[[1, 4]])


def test_a_tile_on_the_chip_is_selected_by_a_scalar() -> None:
    def kernel(t: Any, i: Any) -> Any:
        tile, out = nl.load(t), nl.ndarray((6, 8), t.dtype, buffer=nl.shared_hbm)
        row = nl.ndarray((6, 8), t.dtype)
        nisa.tensor_copy(row, tile.select(1, nisa.scalar_load(i) - 1))
        nisa.dma_copy(out, row)
        return out

    with session(target="trn2", strict=True):
        found = jit(kernel)(TABLE, np.array([[3]], np.int32))
    np.testing.assert_array_equal(found, TABLE[:, 2])


def test_64_bits_address_hbm() -> None:
    def kernel(t: Any, i: Any) -> Any:
        out = nl.ndarray((4, 8), t.dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(out, t.select(0, nisa.scalar_load(i)))
        return out

    with session(target="trn2", strict=True):
        found = jit(kernel)(TABLE, np.array([[5]], np.int64))
    np.testing.assert_array_equal(found, TABLE[5])


@pytest.mark.parametrize(
    ("view", "index"),
    [
        (lambda t, i: t.select(0, i), [6]),
        (lambda t, i: t.select(1, i), [-1]),
        (lambda t, i: t[0:3].select(0, i), [3]),
        (lambda t, i: t.vector_select(0, i), [0, 6]),
        (lambda t, i: t[0:3].vector_select(0, i), [3, 0]),
        (lambda t, i: t.vector_select(0, i), [-1, 0]),
    ],
)
def test_an_index_outside_is_refused(view: Any, index: list[int]) -> None:
    with pytest.raises(NkiValidationError) as caught:
        copied(view, TABLE, index)
    assert caught.value.rule == "dma-bounds"


def chosen(data: np.ndarray, index: np.ndarray, count: int, group: int) -> np.ndarray:
    """What the documentation says of `.indirect`, element by element."""
    out = np.empty((data.shape[0], count), data.dtype)
    for p in range(data.shape[0]):
        for i in range(count):
            out[p, i] = data[p, index[p // group * group + i % group, i // group]]
    return out


def picked(rows: int, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    data = RNG.standard_normal((rows, 40)).astype(np.float32)
    index = RNG.integers(0, 36, (rows, 3)).astype(np.int32)

    def kernel(x: Any, i: Any) -> Any:
        source = nl.load(x)[:, 2:38].indirect(nl.load(i), count)
        tile = nl.ndarray(source.shape, nl.float32)
        nisa.tensor_scalar(tile, source, op0=nl.multiply, operand0=2.0)
        out = nl.ndarray(source.shape, nl.float32, buffer=nl.shared_hbm)
        nisa.dma_copy(out, tile)
        return out

    with session(target="trn3", strict=True):
        found = jit(kernel)(data, index)
    return found, 2 * chosen(data[:, 2:38], index, count or index.size, 16)


@pytest.mark.parametrize(("rows", "count"), [(16, None), (16, 5), (32, 48), (128, 17)])
def test_columns_are_chosen_in_snake_order_by_each_group(rows: int, count: int | None) -> None:
    np.testing.assert_array_equal(*picked(rows, count))


def test_the_tensor_engine_has_groups_of_32() -> None:
    data = RNG.standard_normal((64, 20)).astype(np.float32)
    index = RNG.integers(0, 20, (64, 1)).astype(np.int32)
    left = RNG.standard_normal((64, 8)).astype(np.float32)

    def kernel(x: Any, i: Any, w: Any) -> Any:
        dst = nl.ndarray((8, 30), nl.float32, buffer=nl.psum)
        nisa.nc_matmul(dst, nl.load(w), nl.load(x).indirect(nl.load(i), 30))
        tile = nl.ndarray((8, 30), nl.float32)
        nisa.tensor_copy(tile, dst)
        out = nl.ndarray((8, 30), nl.float32, buffer=nl.shared_hbm)
        nisa.dma_copy(out, tile)
        return out

    with session(target="trn3", strict=True):
        found = jit(kernel)(data, index, left)
    expected = left.T.astype(np.float64) @ chosen(data, index, 30, 32)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_columns_are_scattered_and_count_as_written() -> None:
    index = np.array([RNG.permutation(16) for _ in range(2)], np.int32).reshape(32, 1)
    values = RNG.standard_normal((32, 16)).astype(np.float32)

    def kernel(v: Any, i: Any) -> Any:
        tile = nl.ndarray((32, 16), nl.float32)
        nisa.tensor_copy(tile.indirect(nl.load(i), 16), nl.load(v))
        out = nl.ndarray((32, 16), nl.float32, buffer=nl.shared_hbm)
        nisa.dma_copy(out, tile)
        return out

    with session(target="trn3", strict=True) as run:
        found = jit(kernel)(values, index)
    expected = np.empty_like(values)
    for p in range(32):
        for i in range(16):
            expected[p, index[p // 16 * 16 + i, 0]] = values[p, i]
    np.testing.assert_array_equal(found, expected)
    copy, store = run.ledger.events[-2:]
    assert copy.writes[0].region == store.reads[0].region == (0, 32, 0, 64)
    assert [access.argument for access in copy.reads] == ["dst.offset", "src"]


def sb(*shape: int, dtype: Any = nl.float32, buffer: Any = nl.sbuf) -> Any:
    tile = nl.ndarray(shape, dtype, buffer=buffer)
    nisa.memset(tile, 1.0 if dtype.is_float else 1)
    return tile


def hbm() -> Any:
    return nl.ndarray((8, 4, 2), nl.float32, buffer=nl.shared_hbm)


def index(*shape: int) -> Any:
    return sb(*(shape or (4, 1)), dtype=nl.int32)


def rows() -> Any:
    return hbm().vector_select(0, index())


def columns(count: int | None = None, parts: int = 16) -> Any:
    return sb(parts, 8).indirect(index(parts, 2), count)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "both offsets": (
        lambda: hbm().ap([[8, 4], [1, 8]], scalar_offset=index(1, 1), vector_offset=index()),
        "value",
    ),
    "rows of a tile": (lambda: sb(8, 8).vector_select(0, index(8, 1)), "buffer"),
    "rows of axis 1": (lambda: hbm().vector_select(1, index()), "buffer"),
    "an index in HBM": (
        lambda: hbm().vector_select(0, nl.ndarray((4, 1), nl.int32, buffer=nl.hbm)),
        "buffer",
    ),
    "an index of floats": (lambda: hbm().vector_select(0, sb(4, 1)), "dtype"),
    "a wide index": (lambda: hbm().vector_select(0, index(4, 2)), "shape"),
    "an index of lists": (lambda: hbm().select(0, [1]), "index-bounds"),
    "a scalar in PSUM": (
        lambda: hbm().select(0, sb(1, 1, dtype=nl.int32, buffer=nl.psum)),
        "buffer",
    ),
    "a wide scalar": (lambda: hbm().select(0, index(1, 2)), "shape"),
    "partitions": (lambda: sb(8, 8).select(0, index(1, 1)), "partition-view"),
    "a broadcast axis": (
        lambda: hbm()[:, 0:1].broadcast(1, 3).select(1, index(1, 1)),
        "view",
    ),
    "rows of rows": (lambda: rows().vector_select(0, index()), "view"),
    "one of rows": (lambda: rows().select(1, index(1, 1)), "view"),
    "ap of rows": (lambda: rows().ap([[1, 2]]), "view"),
    "a slice of rows": (lambda: rows()[0:2], "view"),
    "a row of rows": (lambda: rows().select(0, 1), "partition-view"),
    "rows in another place": (lambda: rows().permute((1, 0, 2)), "partition-view"),
    "rows reshaped": (lambda: rows().reshape((2, 16)), "partition-view"),
    "bits of rows": (lambda: rows().view(nl.bfloat16), "view"),
    "rows in another instruction": (
        lambda: nisa.register_load(
            nisa.register_alloc(), hbm()[:, 0:1, 0].vector_select(0, index(1, 1))
        ),
        "engine",
    ),
    "columns before gen4": (columns, "generation"),
}
GEN4: dict[str, tuple[Callable[[], Any], str]] = {
    "columns in HBM": (lambda: hbm()[:, 0].indirect(index()), "shape"),
    "columns of three axes": (lambda: sb(16, 2, 4).indirect(index(16, 1)), "shape"),
    "columns by floats": (lambda: sb(16, 8).indirect(sb(16, 1)), "dtype"),
    "columns by other partitions": (lambda: sb(16, 8).indirect(index(32, 1)), "shape"),
    "no columns": (lambda: columns(0), "value"),
    "a view of columns": (lambda: columns(8)[:, 0:4], "view"),
    "columns by DMA": (lambda: nisa.dma_copy(sb(16, 32), columns()), "engine"),
    "more columns than offsets": (lambda: nisa.tensor_copy(sb(16, 33), columns(33)), "size-limit"),
    "all offsets of two groups": (
        lambda: nisa.tensor_copy(sb(32, 64), columns(parts=32)),
        "size-limit",
    ),
    "half a group": (lambda: nisa.tensor_copy(sb(8, 4), columns(4, parts=8)), "size-limit"),
    "a column outside": (
        lambda: nisa.tensor_copy(sb(16, 4), sb(16, 8)[:, 0:1].indirect(index(16, 1), 4)),
        "index-bounds",
    ),
    "columns nobody wrote": (
        lambda: nisa.tensor_copy(
            sb(16, 4), nl.ndarray((16, 8), nl.float32).indirect(index(16, 1), 4)
        ),
        "read-undefined",
    ),
}


@pytest.mark.parametrize("name", [*REFUSED, *GEN4])
def test_a_view_that_the_device_does_not_have_is_refused(name: str) -> None:
    call, rule = (REFUSED | GEN4)[name]
    with (
        session(target="trn3" if name in GEN4 else "trn2", strict=True),
        pytest.raises(NkiValidationError) as caught,
    ):
        jit(lambda: call() and None)()
    assert caught.value.rule == rule


def test_64_bits_do_not_address_a_tile() -> None:
    with (
        session(target="trn2", strict=True),
        pytest.raises(NkiValidationError, match="32 bits on the chip"),
    ):
        jit(lambda i: sb(8, 8).select(1, nisa.scalar_load(i)) and None)(np.array([[1]], np.int64))


def test_a_product_into_chosen_columns_is_named_as_missing() -> None:
    def kernel() -> None:
        dst = nl.ndarray((16, 8), nl.float32, buffer=nl.psum).indirect(index(16, 1), 8)
        nisa.nc_matmul(dst, sb(32, 16), sb(32, 8))

    with session(target="trn3"), pytest.raises(NkiNotSimulated, match="indirect"):
        jit(kernel)()


def test_a_product_goes_where_a_scalar_says() -> None:
    left, right = RNG.standard_normal((2, 32, 8)).astype(np.float32)

    def kernel(x: Any, y: Any) -> Any:
        dst, a, b = nl.zeros((8, 2, 8), nl.float32, nl.psum), nl.load(x), nl.load(y)
        for accumulate in (False, True):
            at = dst.select(1, nisa.register_alloc(1))
            nisa.nc_matmul(at, a, b, accumulate=accumulate)
        tile = nl.ndarray((8, 2, 8), nl.float32)
        nisa.tensor_copy(tile, dst)
        out = nl.ndarray((8, 2, 8), nl.float32, buffer=nl.shared_hbm)
        nisa.dma_copy(out, tile)
        return out

    with session(target="trn2", strict=True):
        found = jit(kernel)(left, right)
    assert not found[:, 0].any()
    expected = 2 * left.T.astype(np.float64) @ right
    np.testing.assert_allclose(found[:, 1], expected, rtol=1e-5, atol=1e-5)


def test_what_a_view_says_of_itself() -> None:
    def kernel(t: Any) -> None:
        tile = nl.load(t)
        assert t.is_contiguous()
        assert not t[:, 1:3].is_contiguous()
        assert tile.is_contiguous()
        assert tile[:, 1:3].is_contiguous(), "within a partition"
        assert not tile[:, :, 1:3].is_contiguous()
        assert tile[:, 1:3].get_pattern() == [[32, 6], [8, 2], [1, 8]]
        assert not tile.is_indirect()
        assert t.vector_select(0, index()).is_indirect()
        assert t.select(0, index(1, 1)).is_indirect()

    with session(target="trn2", strict=True):
        jit(kernel)(TABLE)
