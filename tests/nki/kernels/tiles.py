"""What kernels share: ceil division, the tiles of an axis, a load into a new tile."""

import nki.isa as nisa
import nki.language as nl

P_MAX = 128  # partitions
F_MAX = 512  # float32 columns of a PSUM bank, and of a moving operand


def div_ceil(n, d):
    return (n + d - 1) // d


def tiles_of(extent, size):
    """(start, length) of the tiles of an axis; the last one may be shorter."""
    return [(i * size, min(size, extent - i * size)) for i in range(div_ceil(extent, size))]


def load_tile(src, dtype=None, name=""):
    """An HBM view as a new SBUF tile."""
    tile = nl.ndarray(src.shape, dtype=dtype or src.dtype, buffer=nl.sbuf, name=name)
    nisa.dma_copy(dst=tile, src=src)
    return tile


def store_psum(dst, psum):
    """A PSUM tile into HBM, rounded to the output's dtype on the way through SBUF."""
    tile = nl.ndarray(psum.shape, dtype=dst.dtype, buffer=nl.sbuf)
    nisa.tensor_copy(dst=tile, src=psum)
    nisa.dma_copy(dst=dst, src=tile)
