"""Matrix multiplication in the five stages of the public tutorial's description.

All take lhsT [K, M] and rhs [K, N] and return [M, N] in the dtype of lhsT.
Basic: one tile. Tiled: a load for every product. Hoisted: lhsT stays for all column tiles, rhs
for all row tiles of its column tile. Blocked: several tiles of M and N share their loads. Fully
blocked: K in blocks too, whose partial sums are kept in SBUF in float32.
"""

from dataclasses import dataclass

import nki
import nki.isa as nisa
import nki.language as nl

from tests.nki.kernels.tiles import F_MAX, P_MAX, div_ceil, load_tile, store_psum, tiles_of


@nki.jit
def matmul_basic(lhsT, rhs):
    """K <= 128, M <= 128, N <= 512: one instruction of the tensor engine."""
    K, M = lhsT.shape
    N = rhs.shape[1]
    assert max(K, M) <= P_MAX, f"expected one tile, got {K=} {M=}"
    assert N <= F_MAX, f"expected one tile, got {N=}"
    result = nl.ndarray((M, N), dtype=lhsT.dtype, buffer=nl.shared_hbm)
    product = nl.matmul(nl.load(lhsT), nl.load(rhs), transpose_x=True)
    nl.store(result, value=nl.copy(product, dtype=result.dtype))
    return result


@nki.jit
def matmul_tiled(lhsT, rhs):
    K, M = lhsT.shape
    N = rhs.shape[1]
    result = nl.ndarray((M, N), dtype=lhsT.dtype, buffer=nl.shared_hbm)
    for m, rows in tiles_of(M, P_MAX):
        for n, columns in tiles_of(N, F_MAX):
            psum = nl.ndarray((rows, columns), dtype=nl.float32, buffer=nl.psum)
            for k, depth in tiles_of(K, P_MAX):
                left = load_tile(lhsT[k : k + depth, m : m + rows])
                right = load_tile(rhs[k : k + depth, n : n + columns])
                nisa.nc_matmul(dst=psum, stationary=left, moving=right, accumulate=k > 0)
            store_psum(result[m : m + rows, n : n + columns], psum)
    return result


@nki.jit
def matmul_hoisted(lhsT, rhs):
    K, M = lhsT.shape
    N = rhs.shape[1]
    result = nl.ndarray((M, N), dtype=lhsT.dtype, buffer=nl.shared_hbm)
    depths = tiles_of(K, P_MAX)
    for m, rows in tiles_of(M, P_MAX):
        lefts = []
        for k, depth in depths:
            lefts.append(load_tile(lhsT[nl.ds(k, depth), nl.ds(m, rows)], name=f"left_{m}_{k}"))
        for n, columns in tiles_of(N, F_MAX):
            psum = nl.zeros((rows, columns), dtype=nl.float32, buffer=nl.psum)
            for i in nl.static_range(len(depths)):
                k, depth = depths[i]
                right = load_tile(rhs[nl.ds(k, depth), nl.ds(n, columns)])
                nisa.nc_matmul(dst=psum, stationary=lefts[i], moving=right)
            store_psum(result[nl.ds(m, rows), nl.ds(n, columns)], psum)
    return result


@dataclass
class Blocking(nl.NKIObject):
    """Tiles per block of each axis."""

    m: int = 2
    n: int = 2
    k: int = 2

    def __post_init__(self):
        assert min(self.m, self.n, self.k) > 0, f"expected at least one tile, got {self}"


@nki.jit
def matmul_blocked(lhsT, rhs, block_m=2, block_n=2):
    """M and N a multiple of their blocks; K a multiple of 128: a block is one tile of 3 axes."""
    K, M = lhsT.shape
    N = rhs.shape[1]
    width_m, width_n = block_m * P_MAX, block_n * F_MAX
    assert M % width_m == 0
    assert N % width_n == 0
    assert K % P_MAX == 0
    result = nl.ndarray((M, N), dtype=lhsT.dtype, buffer=nl.shared_hbm)
    depth = K // P_MAX
    left_view = lhsT.reshape((depth, P_MAX, M))
    right_view = rhs.reshape((depth, P_MAX, N))
    for m in nl.affine_range(M // width_m):
        left = nl.ndarray((P_MAX, depth, width_m), dtype=lhsT.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=left, src=left_view[:, :, nl.ds(m * width_m, width_m)].permute((1, 0, 2)))
        for n in nl.affine_range(N // width_n):
            right = nl.ndarray((P_MAX, depth, width_n), dtype=rhs.dtype, buffer=nl.sbuf)
            for k in nl.affine_range(depth):
                nisa.dma_copy(dst=right[:, k, :], src=right_view[k, :, nl.ds(n * width_n, width_n)])
            for i in nl.affine_range(block_m):
                for j in nl.affine_range(block_n):
                    psum = nl.ndarray((P_MAX, F_MAX), dtype=nl.float32, buffer=nl.psum)
                    for k in nl.sequential_range(depth):
                        nisa.nc_matmul(
                            psum,
                            left[0:P_MAX, k, i * P_MAX : (i + 1) * P_MAX],
                            right[0:P_MAX, k, j * F_MAX : (j + 1) * F_MAX],
                        )
                    row, column = m * width_m + i * P_MAX, n * width_n + j * F_MAX
                    store_psum(result[row : row + P_MAX, column : column + F_MAX], psum)
    return result


@nki.jit
def matmul_fully_blocked(lhsT, rhs, block_m=2, block_n=1, block_k=2):
    """Any K, M, N. On two cores each takes every second block of columns."""
    K, M = lhsT.shape
    N = rhs.shape[1]
    block = Blocking(block_m, block_n, k=block_k)
    result = nl.ndarray((M, N), dtype=lhsT.dtype, buffer=nl.shared_hbm)
    cores = nl.num_programs(0) if nl.program_ndim() else 1
    first = nl.program_id(0) if cores > 1 else 0
    for n in range(first, div_ceil(N, block.n * F_MAX), cores):
        n0 = n * block.n * F_MAX
        columns = tiles_of(min(block.n * F_MAX, N - n0), F_MAX)
        for m in range(div_ceil(M, block.m * P_MAX)):
            m0 = m * block.m * P_MAX
            rows = tiles_of(min(block.m * P_MAX, M - m0), P_MAX)
            sums = {}
            for k in range(div_ceil(K, block.k * P_MAX)):
                k0 = k * block.k * P_MAX
                depths = tiles_of(min(block.k * P_MAX, K - k0), P_MAX)
                add_block(sums, lhsT, rhs, (k0, m0, n0), (depths, rows, columns))
            for i, height in rows:
                for j, width in columns:
                    out = nl.ndarray((height, width), dtype=result.dtype, buffer=nl.sbuf)
                    nisa.tensor_copy(dst=out, src=sums[f"{i}_{j}"])
                    here = result[m0 + i : m0 + i + height, n0 + j : n0 + j + width]
                    nisa.dma_copy(dst=here, src=out)
    return result


def add_block(sums, lhsT, rhs, corner, tiles):
    """sums["i_j"] += the products of one block of K."""
    k0, m0, n0 = corner
    depths, rows, columns = tiles
    left, right = {}, {}
    for k, depth in depths:
        inner = slice(k0 + k, k0 + k + depth)
        for i, height in rows:
            left[f"{k}_{i}"] = load_tile(lhsT[inner, m0 + i : m0 + i + height])
        for j, width in columns:
            right[f"{k}_{j}"] = load_tile(rhs[inner, n0 + j : n0 + j + width])
    for i, height in rows:
        for j, width in columns:
            psum = nl.ndarray((height, width), dtype=nl.float32, buffer=nl.psum)
            for k, _ in depths:
                nisa.nc_matmul(psum, left[f"{k}_{i}"], right[f"{k}_{j}"], accumulate=k > 0)
            key = f"{i}_{j}"
            if key in sums:
                nisa.tensor_tensor(dst=sums[key], data1=sums[key], data2=psum, op=nl.add)
            else:
                sums[key] = nl.ndarray((height, width), dtype=nl.float32, buffer=nl.sbuf)
                nisa.tensor_copy(dst=sums[key], src=psum)
