"""Tile grids against numpy's slices, and what they refuse."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nki_kernels.simulator import NkiValidationError, jit, session
from nki_kernels.simulator import isa as nisa
from nki_kernels.simulator import language as nl
from nki_kernels.simulator.errors import NkiTypeError

RNG = np.random.default_rng(5)
X = RNG.standard_normal((300, 700)).astype(np.float32)
SLABS = RNG.standard_normal((3, 40, 50)).astype(np.float32)


def run(kernel: Any, *arrays: Any, **options: Any) -> Any:
    with session(**({"target": "trn2", "strict": True} | options)):
        return jit(kernel)(*arrays)


def tile_by_tile(x: Any) -> Any:
    """As the documentation's example: each tile in and out."""
    shape = (128, 256)
    source, out = nl.tiles(x, tile_shape=shape), nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
    target = nl.tiles(out, tile_shape=shape)
    assert source.shape == (3, 3)
    for i in range(source.shape[0]):
        for j in range(source.shape[1]):
            one = source[i, j]
            tile = nl.ndarray(one.element_shape, x.dtype)
            nisa.dma_copy(dst=tile.data, src=one.data)
            nisa.tensor_scalar(tile, tile, op0=nl.multiply, operand0=float(10 * i + j))
            nisa.dma_copy(dst=target[i, j].data, src=tile.data)
    return out


def test_tiles_cover_a_ragged_tensor() -> None:
    factor = 10 * (np.arange(300) // 128)[:, None] + np.arange(700) // 256
    np.testing.assert_array_equal(run(tile_by_tile, X), X * factor.astype(np.float32))


def rows_of_tiles(x: Any) -> Any:
    """All of x on the chip, more rows than partitions; a row of tiles by one instruction."""
    whole = nl.alloc_tiles(
        tile_shape=(128, 256), element_shape=x.shape, buffer=nl.sbuf, dtype=x.dtype
    )
    source = nl.tiles(x, tile_shape=(128, 256))
    out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
    for i in range(whole.shape[0]):
        for j in range(whole.shape[1]):
            nisa.dma_copy(whole[i, j].data, source[i, j].data)
    for i in range(whole.shape[0]):
        row = whole[i, :]
        nisa.tensor_scalar(row.data, row.data, op0=nl.add, operand0=float(i))
        middle = whole[i, 1:].data
        nisa.tensor_scalar(middle, middle, op0=nl.multiply, operand0=2.0)
        nisa.dma_copy(nl.tiles(out, tile_shape=(128, 256))[i].data, row.data)
    return out


def test_tiles_on_the_chip_lie_side_by_side() -> None:
    expected = X + (np.arange(300) // 128).astype(np.float32)[:, None]
    expected[:, 256:] *= 2
    np.testing.assert_array_equal(run(rows_of_tiles, X), expected)


def block_by_block(x: Any) -> Any:
    """Blocks of 2 x 2 tiles; the tiles of each in the order of the block."""
    sizes = {"tile_shape": (64, 100), "block_shape": (2, 2)}
    out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
    source, target = nl.blocks(x, **sizes), nl.blocks(out, **sizes)
    held = nl.alloc_blocks(**sizes, element_shape=x.shape, buffer=nl.sbuf, dtype=x.dtype)
    assert source.shape == target.shape == held.shape == (3, 4)
    for i in range(3):
        for j in range(4):
            inner = nl.tiles(held[i, j])
            assert (
                inner.shape
                == nl.tiles(source[i, j]).shape
                == (min(2, 5 - 2 * i), min(2, 7 - 2 * j))
            )
            for p in range(inner.shape[0]):
                for q in range(inner.shape[1]):
                    tile = inner[p, q].data
                    nisa.dma_copy(tile, nl.tiles(source[i, j])[p, q].data)
                    number = 1000 * i + 100 * j + 10 * p + q
                    nisa.tensor_scalar(tile, tile, op0=nl.add, operand0=float(number))
                nisa.dma_copy(nl.tiles(target[i, j])[p].data, inner[p].data)
    return out


def test_blocks_hold_tiles() -> None:
    row, column = np.arange(300)[:, None] // 64, np.arange(700) // 100
    number = 1000 * (row // 2) + 100 * (column // 2) + 10 * (row % 2) + column % 2
    np.testing.assert_array_equal(run(block_by_block, X), X + number.astype(np.float32))


def tiled(source: Any) -> Any:
    return nl.tiles(source, tile_shape=(128, 256))


def blocked(source: Any) -> Any:
    return nl.blocks(source, tile_shape=(64, 100), block_shape=(2, 3))


SELECTIONS: dict[str, tuple[Callable[[Any], Any], Any, Any]] = {
    "all": (tiled, X, X),
    "a tile": (lambda x: tiled(x)[1, 1], X, X[128:256, 256:512]),
    "a negative index": (lambda x: tiled(x)[-1, -1], X, X[256:, 512:]),
    "a row": (lambda x: tiled(x)[1], X, X[128:256]),
    "a column": (lambda x: tiled(x)[:, 2], X, X[:, 512:]),
    "the last index": (lambda x: tiled(x)[..., 0], X, X[:, :256]),
    "a part": (lambda x: tiled(x)[1:, 0:2], X, X[128:, :512]),
    "a part of a part": (lambda x: tiled(x)[1:, 0:2][1:, 1], X, X[256:, 256:512]),
    "a step to one tile": (lambda x: tiled(x)[::3, 1], X, X[:128, 256:512]),
    "steps of single columns": (
        lambda x: nl.tiles(x, tile_shape=(128, 1))[0, 3:90:4],
        *(X, X[:128, 3:90:4]),
    ),
    "a slab": (lambda x: nl.tiles(x, tile_shape=(16, 32))[2, 1, 1], SLABS, SLABS[2, 16:32, 32:]),
    "slabs": (lambda x: nl.tiles(x, tile_shape=(16, 32))[1:, 2], SLABS, SLABS[1:, 32:]),
    "steps of slabs": (lambda x: nl.tiles(x, tile_shape=(16, 32))[::2], SLABS, SLABS[::2]),
    "tiles of a view": (lambda x: tiled(x[10:, 5:])[0, 1], X, X[10:138, 261:517]),
    "a block": (lambda x: blocked(x)[1, 1], X, X[128:256, 300:600]),
    "a block at the corner": (lambda x: blocked(x)[2, 2], X, X[256:, 600:]),
    "tiles of blocks": (lambda x: nl.tiles(blocked(x)[1, 1:])[1, 3], X, X[192:256, 600:]),
    "other tiles of a tile": (
        lambda x: nl.tiles(tiled(x)[1, 1], tile_shape=(32, 100))[3, 2],
        *(X, X[224:256, 456:512]),
    ),
    "blocks of tiles": (
        lambda x: nl.blocks(tiled(x), block_shape=(2, 2))[0, 1],
        *(X, X[:256, 512:]),
    ),
    "blocks of a part": (
        lambda x: nl.blocks(tiled(x)[2:, :], block_shape=(2, 1))[0, 1],
        *(X, X[256:, 256:512]),
    ),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_selection_is_numpys(name: str) -> None:
    select, array, expected = SELECTIONS[name]

    def kernel(x: Any) -> Any:
        grid = select(x)
        assert grid.is_data_representable
        assert grid.element_shape == grid.data.shape == expected.shape
        assert (grid.buffer, grid.dtype) == (nl.hbm, nl.float32)
        out = nl.ndarray(expected.shape, x.dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(out, grid.data)
        return out

    np.testing.assert_array_equal(run(kernel, array), expected)


def test_a_grid_tells_its_geometry() -> None:
    def kernel(x: Any, slabs: Any) -> None:
        grid = tiled(x)
        assert isinstance(grid, nl.NkiTileGrid)
        assert isinstance(grid, nl.NkiGrid)
        assert (grid.shape, grid.tile_shape) == ((3, 3), (128, 256))
        assert grid.index_step_elements == (128, 256)
        assert grid[:, ::2].index_step_elements == (128, 512)
        assert grid[0].index_step_elements == (256,)
        assert grid[0, 0].shape == grid[0, 0].index_step_elements == ()
        assert [grid[i, 0].is_remainder for i in range(3)] == [False, False, True]
        assert grid.is_remainder
        assert not grid[0:2, 0:2].is_remainder
        assert grid[2, 2].element_shape == (44, 188)
        assert grid[2, 2].tile_shape == (128, 256)
        block = blocked(x)[0:2]
        assert isinstance(block, nl.NkiBlockGrid)
        assert (block.shape, block.tile_shape, block.block_shape) == ((2, 3), (64, 100), (2, 3))
        assert block.index_step_elements == (128, 300)
        assert nl.tiles(slabs, tile_shape=(16, 32)).shape == (3, 3, 2)
        assert nl.tiles(slabs, tile_shape=(16, 32))[1].element_shape == (40, 50)

    run(kernel, X, SLABS)


def test_tiles_of_slabs_and_of_three_axes_fit_on_the_chip() -> None:
    def kernel(x: Any) -> Any:
        sizes = {"element_shape": (3, 40, 50), "buffer": nl.sbuf, "dtype": nl.float32}
        slabs = nl.alloc_tiles(tile_shape=(16, 32), **sizes)
        cubes = nl.alloc_tiles(tile_shape=(2, 16, 32), **sizes)
        out = nl.ndarray((2, *x.shape), x.dtype, buffer=nl.shared_hbm)
        for place, (grid, shape) in enumerate(((slabs, (16, 32)), (cubes, (2, 16, 32)))):
            source, target = nl.tiles(x, tile_shape=shape), nl.tiles(out[place], tile_shape=shape)
            assert grid.shape == source.shape
            places = [(i, j, k) for i in range(grid.shape[0]) for j in range(3) for k in range(2)]
            for at in places:
                assert grid[at].data.shape == source[at].data.shape
                nisa.dma_copy(grid[at].data, source[at].data)
            for at in places:
                nisa.dma_copy(target[at].data, grid[at].data)
        return out

    np.testing.assert_array_equal(run(kernel, SLABS), np.stack([SLABS, SLABS]))


def test_allocated_tiles_are_as_large_as_whole_tiles_and_uninitialised() -> None:
    def kernel() -> None:
        grid = nl.alloc_tiles(
            tile_shape=(100, 20),
            element_shape=(150, 50),
            buffer=nl.sbuf,
            dtype=nl.float32,
            name="held",
        )
        nisa.memset(grid[1, 0].data, 1.0)
        nisa.tensor_copy(nl.ndarray((50, 20), nl.float32), grid[1, 1].data)

    with pytest.raises(NkiValidationError, match="'held'") as caught:
        run(kernel)
    assert caught.value.rule == "read-undefined"
    with session(target="trn2") as ran, pytest.warns(match="read-undefined"):
        jit(kernel)()
    (held,) = [tile for tile in ran.ledger.allocations.values() if tile.name == "held"]
    assert held.row_bytes == 2 * 3 * 20 * 4


def held(*element_shape: int, tile: tuple[int, ...] = (64, 32), buffer: Any = nl.sbuf) -> Any:
    return nl.alloc_tiles(
        tile_shape=tile, element_shape=element_shape, buffer=buffer, dtype=nl.float32
    )


REFUSED: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "two rows of tiles on the chip": (lambda x: held(128, 64).data, "view", "index it down"),
    "tiles with gaps": (lambda x: tiled(x)[::2].data, "view", "index it down"),
    "slabs on the chip": (lambda x: held(2, 64, 32).data, "view", "index it down"),
    "partitions with a step": (
        lambda x: nl.tiles(nl.load(x[:64]), tile_shape=(1, 8))[::2].data,
        *("view", "index it down"),
    ),
    "tiles of blocks with gaps": (lambda x: nl.tiles(blocked(x)[::2]), "view", "without gaps"),
    "blocks that begin inside": (
        lambda x: nl.blocks(tiled(x)[1:], block_shape=(2, 1)),
        *("view", "whole blocks of 2"),
    ),
    "a list": (lambda x: nl.tiles(x, tile_shape=[128, 256]), "shape", "a tuple of ints"),
    "a fraction": (lambda x: nl.tiles(x, tile_shape=(128, 2.0)), "shape", "a tuple of ints"),
    "a bool": (lambda x: nl.tiles(x, tile_shape=(128, True)), "shape", "a tuple of ints"),
    "one extent": (lambda x: nl.tiles(x, tile_shape=(128,)), "shape", "two or more"),
    "a zero": (lambda x: nl.tiles(x, tile_shape=(128, 0)), "shape", "above 0"),
    "too many extents": (lambda x: nl.tiles(x, tile_shape=(1, 1, 1)), "shape", "at most 2"),
    "no tile shape": (lambda x: nl.tiles(x), "shape", "a tuple of ints"),
    "no tensor": (lambda x: nl.tiles(3, tile_shape=(1, 1)), "signature", "a tensor or a grid"),
    "other ranks": (
        lambda x: nl.blocks(x, tile_shape=(64, 64), block_shape=(2, 2, 2)),
        *("shape", "2 extents"),
    ),
    "a prefix on the chip": (
        lambda x: nl.tiles(nl.ndarray((8, 4, 4), nl.float32), tile_shape=(4, 4)),
        *("shape", "3 extents on the chip"),
    ),
    "no buffer": (lambda x: held(64, 32, buffer="sbuf"), "enum", "nl.sbuf"),
    "too many partitions": (lambda x: held(256, 32, tile=(256, 32)), "partitions", "128"),
    "too large": (lambda x: held(64, 60000), "sbuf-capacity", "bytes per partition"),
    "an index outside": (lambda x: tiled(x)[3, 0], "index-bounds", "an int below 3"),
    "too many coordinates": (lambda x: tiled(x)[0, 0, 0], "index-bounds", "at most 2"),
    "a consumed coordinate": (lambda x: tiled(x)[0, 0][0], "index-bounds", "at most 0"),
    "a run-time index": (
        lambda x: tiled(x)[nisa.register_alloc(0)],
        *("tensor-value", "compile-time value"),
    ),
    "a grid as an operand": (
        lambda x: nisa.tensor_copy(held(64, 32), held(64, 32)),
        *("signature", "a tensor"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_grid_that_is_none_is_refused(name: str) -> None:
    call, rule, expected = REFUSED[name]
    with pytest.raises(NkiValidationError, match=expected) as caught:
        run(lambda x: call(x) and None, X)
    assert caught.value.rule == rule


def test_wrong_types_are_type_errors_and_grids_are_not_iterable() -> None:
    with pytest.raises(NkiTypeError):
        run(lambda x: nl.tiles(x, tile_shape=[1, 1]) and None, X)
    with pytest.raises(TypeError, match="not iterable"):
        run(lambda x: list(tiled(x)), X)


@pytest.mark.parametrize("call", [tiled, blocked, lambda x: held(64, 32)])
@pytest.mark.filterwarnings("ignore::nki_kernels.simulator.NkiWarning")
def test_grids_come_with_0_7(call: Any) -> None:
    with pytest.raises(NkiValidationError, match=r"NKI 0.7 or newer") as caught:
        run(lambda x: call(x) and None, X, nki="0.6", strict=False)
    assert caught.value.rule == "nki-version"
