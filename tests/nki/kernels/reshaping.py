"""Transposes, pooling, cumulative sums and a cascaded maximum."""

from enum import Enum

import nki
import nki.isa as nisa
import nki.language as nl

from tests.nki.kernels.tiles import P_MAX, div_ceil, load_tile, store_psum, tiles_of


class Way(Enum):
    """What moves elements across partitions."""

    DMA = "dma"
    TENSOR = "tensor"
    IDENTITY = "identity"


@nki.jit
def transpose(x, way=Way.TENSOR):
    """x [R, C] -> [C, R], in tiles of 128 x 128."""
    R, C = x.shape
    out = nl.ndarray((C, R), dtype=x.dtype, buffer=nl.shared_hbm)
    identity = nl.shared_identity_matrix(P_MAX, dtype=x.dtype) if way == Way.IDENTITY else None
    for r, rows in tiles_of(R, P_MAX):
        for c, columns in tiles_of(C, P_MAX):
            here = out[c : c + columns, r : r + rows]
            source = x[r : r + rows, c : c + columns]
            if way == Way.DMA:
                turned = nl.ndarray((columns, rows), dtype=x.dtype, buffer=nl.sbuf)
                nisa.dma_transpose(dst=turned, src=source)
                nl.store(here, turned)
                continue
            tile = load_tile(source)
            psum = nl.ndarray((columns, rows), dtype=x.dtype, buffer=nl.psum)
            if identity == None:  # noqa: E711
                nisa.nc_transpose(dst=psum, data=tile)
            else:
                unit = identity[0:rows, 0:rows]
                nisa.nc_matmul(dst=psum, stationary=tile, moving=unit, is_transpose=True)
            store_psum(here, psum)
    return out


@nki.jit
def transpose_inner(x, shape2D):
    """x [P, F1 * F2] -> [P, F2 * F1]: the free axes swapped by strided copies."""
    F1, F2 = shape2D
    P, F = x.shape
    assert F == F1 * F2, f"expected {F1} * {F2} columns, got {F}"
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    for p, size in tiles_of(P, P_MAX):
        tile = nl.load(x[p : p + size, :])
        turned = nl.ndarray((size, F), dtype=x.dtype, buffer=nl.sbuf)
        for f in nl.affine_range(F1):
            nisa.tensor_copy(
                dst=turned.ap(pattern=[[F, size], [F1, F2]], offset=f),
                src=tile[:, nl.ds(f * F2, F2)],
            )
        nl.store(out[p : p + size, :], value=turned)
    return out


@nki.jit
def average_pool(x, pool):
    """x [C, H, W] -> [C, H // pool, W // pool], windows that do not overlap."""
    C, H, W = x.shape
    assert H % pool == 0, f"{pool=} does not divide {H=}"
    assert W % pool == 0, f"{pool=} does not divide {W=}"
    h, w = H // pool, W // pool
    out = nl.ndarray((C, h, w), dtype=x.dtype, buffer=nl.shared_hbm)
    for c, size in tiles_of(C, P_MAX):
        tile = load_tile(x[c : c + size])
        windows = tile.ap([[H * W, size], [pool * W, h], [pool, w], [W, pool], [1, pool]])
        total = nl.sum(windows, axis=[3, 4], dtype=nl.float32)
        mean = nl.multiply(total, 1.0 / (pool * pool), dtype=x.dtype)
        nl.store(out[c : c + size], mean)
    return out


@nki.jit
def max_pool(x, kernel, stride):
    """x [C, H, W] -> [C, (H - kernel) // stride + 1, ...], windows that may overlap."""
    C, H, W = x.shape
    h, w = (H - kernel) // stride + 1, (W - kernel) // stride + 1
    out = nl.ndarray((C, h, w), dtype=x.dtype, buffer=nl.shared_hbm)
    for c, size in tiles_of(C, P_MAX):
        tile = load_tile(x[c : c + size, :, :])
        best = nl.ndarray((size, h, w), dtype=x.dtype, buffer=nl.sbuf)
        for i in range(kernel):
            for j in range(kernel):
                shifted = tile[
                    :,
                    i : i + (h - 1) * stride + 1 : stride,
                    j : j + (w - 1) * stride + 1 : stride,
                ]
                if i == 0 and j == 0:
                    nisa.tensor_copy(dst=best, src=shifted)
                else:
                    nisa.tensor_tensor(dst=best, data1=best, data2=shifted, op=nl.maximum)
        nisa.dma_copy(dst=out[c : c + size, :, :], src=best)
    return out


@nki.jit
def cumsum(x, block=512):
    """x [..., F]: the running sum along the last axis; float32 between blocks."""
    F = x.shape[-1]
    rows = 1
    for extent in x.shape[:-1]:
        rows *= extent
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    flat, flat_out = x.reshape((rows, F)), out.reshape((rows, F))
    for i in range(div_ceil(rows, P_MAX)):
        p, size = i * P_MAX, min(P_MAX, rows - i * P_MAX)
        ones = nl.ones((size, block), dtype=nl.float32)
        carry = nl.zeros((size, 1), dtype=nl.float32)
        for f, width in tiles_of(F, block):
            tile = load_tile(flat[p : p + size, f : f + width])
            sums = nl.ndarray((size, width), dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_tensor_scan(
                dst=sums,
                data0=ones[:, :width],
                data1=tile,
                initial=carry,
                op0=nl.multiply,
                op1=nl.add,
            )
            nisa.tensor_copy(dst=carry, src=sums[:, width - 1 : width])
            nl.store(flat_out[p : p + size, f : f + width], sums)
    return out


@nki.jit
def cumsum_one_pass(x):
    """x [P, F], P <= 128: the running sum by the cumulative instruction."""
    tile = nl.load(x)
    sums = nl.ndarray(x.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar_cumulative(
        dst=sums,
        src=tile,
        op0=nl.multiply,
        op1=nl.add,
        imm0=1.0,
        imm1=0.0,
        reduce_cmd=nisa.reduce_cmd.load_reduce,
    )
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    nl.store(out, sums)
    return out


@nki.jit
def cascaded_max(x, fold=4):
    """x [B, V] -> (max [B, 1], its first index [B, 1]).

    A row is folded over `fold` partitions, each finds its own maximum, then the row's are
    compared; an index is global from the start, so that ties keep the first.
    """
    B, V = x.shape
    assert V % fold == 0, f"{fold=} does not divide {V=}"
    width = V // fold
    values = nl.ndarray((B, 1), dtype=x.dtype, buffer=nl.shared_hbm)
    indices = nl.ndarray((B, 1), dtype=nl.uint32, buffer=nl.shared_hbm)
    folded = x.reshape((B * fold, width))
    step = P_MAX // fold
    for b, size in tiles_of(B, step):
        tile = load_tile(folded[b * fold : (b + size) * fold, :])
        top = nl.ndarray((size * fold, 8), dtype=x.dtype, buffer=nl.sbuf)
        nisa.max8(dst=top, src=tile)
        where = nl.ndarray((size * fold, 8), dtype=nl.uint32, buffer=nl.sbuf)
        nisa.nc_find_index8(dst=where, data=tile, vals=top)
        start = nl.ndarray((size * fold, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.iota(dst=start, pattern=[[0, 1]], channel_multiplier=width)
        lane = nl.ndarray((size * fold, 2), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=lane[:, 0:1], src=top[:, 0:1])
        nisa.tensor_tensor(dst=lane[:, 1:2], data1=where[:, 0:1], data2=start, op=nl.add)
        gathered = nl.ndarray((size, fold, 2), dtype=nl.float32, buffer=nl.sbuf)
        staged = nl.ndarray((size * fold, 2), dtype=nl.float32, buffer=nl.private_hbm)
        nisa.dma_copy(dst=staged, src=lane)
        nisa.dma_copy(dst=gathered, src=staged.reshape((size, fold, 2)))
        best = nl.max(gathered[:, :, 0], axis=1, keepdims=True)
        is_best = nl.ndarray((size, fold), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=is_best, data=gathered[:, :, 0], op0=nl.equal, operand0=best)
        row = nl.ndarray((size, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.iota(dst=row, pattern=[[0, 1]], channel_multiplier=V)
        inside = nl.subtract(gathered[:, :, 1], row)
        last = nl.full((size, fold), float(V), dtype=nl.float32)
        candidates = nl.where(is_best, inside, last)
        first = nl.min(candidates, axis=1, keepdims=True)
        nl.store(values[b : b + size], nl.copy(best, dtype=x.dtype))
        nl.store(indices[b : b + size], nl.copy(first, dtype=nl.uint32))
    return values, indices
