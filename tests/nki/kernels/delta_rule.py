"""Gated delta rule prefill, in chunks of tokens.

S[t] = exp(g[t]) S[t-1] + k[t] u[t]^T,  u[t] = beta[t] (v[t] - exp(g[t]) S[t-1]^T k[t]),
o[t] = scale S[t]^T q[t]. In a chunk that starts with S: c = cumsum(g), D[i, j] = exp(c[i] - c[j])
and (I + A) u = beta (v - exp(c) k S), A = beta D (k k^T) below the diagonal. The inverse is made by
doubling blocks whose diagonal parts are inverses already.
"""

import nki
import nki.isa as nisa
import nki.language as nl

from tests.nki.kernels.tiles import load_tile, tiles_of


def matmul(stationary, moving):
    """stationary^T @ moving as an SBUF tile."""
    return nl.copy(nl.matmul(stationary, moving, transpose_x=True))


def turn(tile):
    return nl.copy(nl.transpose(tile))


def below(tile, strictly):
    """Exponents above the diagonal (or on it too) become what exp makes zero."""
    n = tile.shape[0]
    nisa.affine_select(
        dst=tile,
        pattern=[[-1, n]],
        offset=-1 if strictly else 0,
        channel_multiplier=1,
        on_true_tile=tile,
        on_false_value=-1e30,
        cmp_op=nl.greater_equal,
    )


def normalised(tile, epsilon=1e-6):
    n = tile.shape[0]
    square = nl.ndarray(tile.shape, dtype=nl.float32, buffer=nl.sbuf)
    total = nl.ndarray((n, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation_reduce(square, nl.square, tile, reduce_op=nl.add, reduce_res=total)
    return nl.multiply(tile, nl.rsqrt(nl.add(total, epsilon)))


def inverse(A):
    """(I + A)^-1 of a strictly lower A [n, n]."""
    n = A.shape[0]
    A_T = turn(A)
    row = nl.ndarray((n, n), dtype=nl.int32, buffer=nl.sbuf)
    column = nl.ndarray((n, n), dtype=nl.int32, buffer=nl.sbuf)
    nisa.iota(dst=row, pattern=[[0, n]], channel_multiplier=1)
    nisa.iota(dst=column, pattern=[[1, n]], channel_multiplier=0)
    apart = nl.bitwise_xor(row, column)
    found = nl.shared_identity_matrix(n, dtype=nl.float32)
    level = 0
    while 2**level < n:
        block = nl.ndarray((n, n), dtype=nl.int32, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=block, data=apart, op0=nl.right_shift, operand0=level)
        neighbours = nl.equal(block, 1, dtype=nl.float32)
        step = matmul(turn(found), matmul(A_T, found))
        found = nl.subtract(found, nl.multiply(step, neighbours))
        level += 1
    return found


@nki.jit
def gated_delta_rule(q, k, v, g, beta, initial, chunk=64, scale=None):
    """q, k [L, H, K]; v [L, H, V]; g, beta [L, H]; initial [H, K, V] -> o [L, H, V], final.

    q and k are normalised here. On two cores each takes every second head.
    """
    L, H, K = q.shape
    scale = K**-0.5 if scale == None else scale  # noqa: E711
    o = nl.ndarray(v.shape, dtype=v.dtype, buffer=nl.shared_hbm)
    final = nl.ndarray(initial.shape, dtype=nl.float32, buffer=nl.shared_hbm)
    for head in range(nl.program_id(0), H, nl.num_programs(0)):
        state = load_tile(initial[head], dtype=nl.float32)
        for start, n in tiles_of(L, chunk):
            now = slice(start, start + n)
            tiles = []
            for source in (q, k, v):
                tiles.append(load_tile(source[now, head, :], dtype=nl.float32))
            gate = load_tile(g[now, head : head + 1], dtype=nl.float32)
            strength = load_tile(beta[now, head : head + 1], dtype=nl.float32)
            out, state = one_chunk(tiles, gate, strength, state, scale)
            nl.store(o[now, head, :], nl.copy(out, dtype=v.dtype))
        nisa.dma_copy(dst=final[head], src=state)
    return o, final


def one_chunk(tiles, gate, strength, state, scale):
    q, k, v = normalised(tiles[0]), normalised(tiles[1]), tiles[2]
    n, K = q.shape
    ones = nl.ones((n, n), dtype=nl.float32)
    upto = nl.ndarray((n, n), dtype=nl.float32, buffer=nl.sbuf)  # [j, i]: j <= i
    nisa.affine_select(upto, [[1, n]], -1, ones, 0.0, cmp_op=nl.greater_equal)
    c = matmul(upto, gate)
    c_row = nl.matmul(gate.broadcast(1, n), upto, transpose_x=True)
    last = nl.matmul(gate.broadcast(1, max(n, K)), ones[:, 0:1], transpose_x=True)

    exponent = nl.ndarray((n, n), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(exponent, c_row, nl.multiply, -1.0, op1=nl.add, operand1=c)
    below(exponent, strictly=False)
    decay = nl.exp(exponent)
    below(exponent, strictly=True)
    A = nl.ndarray((n, n), dtype=nl.float32, buffer=nl.sbuf)
    k_T, q_T = turn(k), turn(q)
    nisa.scalar_tensor_tensor(
        dst=A,
        data=nl.matmul(k_T, k_T, transpose_x=True),
        op0=nl.multiply,
        operand0=strength,
        op1=nl.multiply,
        operand1=nl.exp(exponent),
    )
    grown = nl.exp(c)
    known = nl.multiply(nl.matmul(k_T, state, transpose_x=True), grown)
    u = matmul(turn(inverse(A)), nl.multiply(nl.subtract(v, known), strength))

    attention = nl.multiply(nl.matmul(q_T, k_T, transpose_x=True), decay)
    out = nl.ndarray(v.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.scalar_tensor_tensor(
        dst=out,
        data=nl.matmul(q_T, state, transpose_x=True),
        op0=nl.multiply,
        operand0=grown,
        op1=nl.add,
        operand1=matmul(turn(attention), u),
    )
    left = nl.exp(nl.subtract(nl.copy(last[0:n]), c))
    new = nl.ndarray(state.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.scalar_tensor_tensor(
        dst=new,
        data=state,
        op0=nl.multiply,
        operand0=nl.exp(nl.copy(last[0:K])),
        op1=nl.add,
        operand1=nl.matmul(nl.multiply(k, left), u, transpose_x=True),
    )
    return nl.multiply(out, scale), new
