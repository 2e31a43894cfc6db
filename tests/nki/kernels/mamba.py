"""The fused Mamba scan in the three steps of the public tutorial's description.

v1: states outside, channel tiles inside: delta and u are loaded again for every state.
v2: channel tiles outside: delta, u and their product stay on the chip.
v3: v2 in blocks of tokens, with the last state of a block starting the next one.
B and C reach all partitions by a matmul with a column of ones; VectorE reads them from PSUM.
"""

import nki
import nki.isa as nisa
import nki.language as nl

BANK = 512  # float32 columns of a PSUM bank


def load(src, dtype):
    tile = nl.ndarray(src.shape, dtype=dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=src)
    return tile


def multiply_row(dst, data, row, ones):
    """dst[P, F] = data[P, F] * row[1, F], one bank of PSUM at a time."""
    P, F = data.shape
    for start in range(0, F, BANK):
        size = min(BANK, F - start)
        here = nl.ds(start, size)
        spread = nl.ndarray((P, size), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_matmul(dst=spread, stationary=ones, moving=row[:, here])
        nisa.tensor_tensor(dst=dst[:, here], data1=data[:, here], data2=spread, op=nl.multiply)


def scan_state(delta, deltaU, A, B_row, C_row, initial, ones, accum):
    """One state of one tile: accum += C * scan(exp(delta * A), deltaU * B); returns the states."""
    shape = delta.shape
    deltaA = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=deltaA, op=nl.exp, data=delta, scale=A)
    deltaBu = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
    multiply_row(deltaBu, deltaU, B_row, ones)
    states = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor_scan(
        dst=states, data0=deltaA, data1=deltaBu, initial=initial, op0=nl.multiply, op1=nl.add
    )
    scanC = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
    multiply_row(scanC, states, C_row, ones)
    nisa.tensor_tensor(dst=accum, data1=accum, data2=scanC, op=nl.add)
    return states


def column_of_ones(P):
    ones = nl.ndarray((1, P), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=ones, value=1.0)
    return ones


@nki.jit
def mamba_v1(delta, u, A, B, C):
    """delta, u [D, L]; A [D, S]; B, C [S, L] -> [D, L]."""
    D, L = delta.shape
    S = A.shape[1]
    P = nl.tile_size.pmax
    out = nl.ndarray((D, L), dtype=delta.dtype, buffer=nl.shared_hbm)
    ones = column_of_ones(P)
    accum = nl.ndarray((P, D // P, L), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=accum, value=0.0)
    for s in nl.affine_range(S):
        for tile in nl.affine_range(D // P):
            rows = nl.ds(tile * P, P)
            delta_i = load(delta[rows, :], delta.dtype)
            u_i = load(u[rows, :], u.dtype)
            A_i = load(A[rows, s : s + 1], A.dtype)
            deltaU = nl.ndarray((P, L), dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_tensor(dst=deltaU, data1=delta_i, data2=u_i, op=nl.multiply)
            B_row, C_row = load(B[s : s + 1, :], B.dtype), load(C[s : s + 1, :], C.dtype)
            scan_state(delta_i, deltaU, A_i, B_row, C_row, 0.0, ones, accum[:, tile, :])
    for tile in nl.affine_range(D // P):
        nisa.dma_copy(dst=out[nl.ds(tile * P, P), :], src=accum[:, tile, :])
    return out


@nki.jit
def mamba_v2(delta, u, A, B, C):
    """As v1, with the loads of delta and u hoisted out of the loop over states."""
    D, L = delta.shape
    S = A.shape[1]
    P = nl.tile_size.pmax
    out = nl.ndarray((D, L), dtype=delta.dtype, buffer=nl.shared_hbm)
    ones = column_of_ones(P)
    for tile in nl.affine_range(D // P):
        rows = nl.ds(tile * P, P)
        delta_i, u_i = load(delta[rows, :], delta.dtype), load(u[rows, :], u.dtype)
        A_i = load(A[rows, :], A.dtype)
        deltaU = nl.ndarray((P, L), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=deltaU, data1=delta_i, data2=u_i, op=nl.multiply)
        accum = nl.ndarray((P, L), dtype=nl.float32, buffer=nl.sbuf)
        nisa.memset(dst=accum, value=0.0)
        for s in nl.affine_range(S):
            B_row, C_row = load(B[s : s + 1, :], B.dtype), load(C[s : s + 1, :], C.dtype)
            scan_state(delta_i, deltaU, A_i[:, s : s + 1], B_row, C_row, 0.0, ones, accum)
        nisa.dma_copy(dst=out[rows, :], src=accum)
    return out


@nki.jit
def mamba_v3(delta, u, A, B, C, block=512):
    """As v2, in blocks of tokens: the tiles of one block fit on the chip at any length."""
    D, L = delta.shape
    S = A.shape[1]
    P = nl.tile_size.pmax
    out = nl.ndarray((D, L), dtype=delta.dtype, buffer=nl.shared_hbm)
    ones = column_of_ones(P)
    for tile in nl.affine_range(D // P):
        rows = nl.ds(tile * P, P)
        delta_i, u_i = load(delta[rows, :], delta.dtype), load(u[rows, :], u.dtype)
        A_i = load(A[rows, :], A.dtype)
        deltaU = nl.ndarray((P, L), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=deltaU, data1=delta_i, data2=u_i, op=nl.multiply)
        accum = nl.ndarray((P, L), dtype=nl.float32, buffer=nl.sbuf)
        nisa.memset(dst=accum, value=0.0)
        for s in nl.affine_range(S):
            carry = nl.ndarray((P, 1), dtype=nl.float32, buffer=nl.sbuf)
            nisa.memset(dst=carry, value=0.0)
            for start in nl.sequential_range(0, L, block):
                now = nl.ds(start, min(block, L - start))
                B_row, C_row = load(B[s : s + 1, now], B.dtype), load(C[s : s + 1, now], C.dtype)
                states = scan_state(
                    delta_i[:, now], deltaU[:, now], A_i[:, s : s + 1], B_row, C_row,
                    carry, ones, accum[:, now],
                )  # fmt: skip
                last = states.shape[1] - 1
                nisa.tensor_copy(dst=carry, src=states[:, last : last + 1])
        nisa.dma_copy(dst=out[rows, :], src=accum)
    return out
