"""Rotary position embedding in both layouts of the pairs."""

from enum import Enum

import nki
import nki.isa as nisa
import nki.language as nl

from tests.nki.kernels.tiles import P_MAX, load_tile, tiles_of


class Pairs(Enum):
    """Element i goes with i + d/2, or 2 i with 2 i + 1."""

    HALVES = 0
    NEIGHBOURS = 1


def pair_views(tile, pairs):
    d = tile.shape[-1]
    if pairs == Pairs.HALVES:
        return tile[:, :, : d // 2], tile[:, :, d // 2 :]
    return tile[:, :, 0:d:2], tile[:, :, 1:d:2]


@nki.jit
def rope(x, cos, sin, pairs=Pairs.HALVES, backward=False):
    """x [L, H, d], cos, sin [L, d / 2] -> [L, H, d]; tokens on partitions, all heads at once."""
    L, H, d = x.shape
    assert cos.shape == sin.shape == (L, d // 2), f"{cos.shape} and {sin.shape}"
    assert isinstance(pairs, Pairs)
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    for start, rows in tiles_of(L, P_MAX):
        here = slice(start, start + rows)
        tile = load_tile(x[here])
        cosine = load_tile(cos[here]).expand_dim(1).broadcast(1, H)
        sine = load_tile(sin[here]).expand_dim(1).broadcast(1, H)
        first, second = pair_views(tile, pairs)
        turned = nl.ndarray(tile.shape, dtype=x.dtype, buffer=nl.sbuf)
        out_first, out_second = pair_views(turned, pairs)
        shape = (rows, H, d // 2)
        for dst, kept, crossed, minus in (
            (out_first, first, second, not backward),
            (out_second, second, first, backward),
        ):
            straight = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
            across = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_tensor(dst=straight, data1=kept, data2=cosine, op=nl.multiply)
            nisa.tensor_tensor(dst=across, data1=crossed, data2=sine, op=nl.multiply)
            op = nl.subtract if minus else nl.add
            nisa.tensor_tensor(dst=dst, data1=straight, data2=across, op=op)
        nisa.dma_copy(dst=out[here], src=turned)
    return out
