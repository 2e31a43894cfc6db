import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def selective_scan_v1(delta, u, A, B, C):
    """delta, u [D, L]; A [D, S]; B, C [S, L] -> [D, L]; states in the inner loop."""
    channels, seq_len = delta.shape
    _, state_size = A.shape
    P = nl.tile_size.pmax
    assert channels % P == 0
    output = nl.ndarray((channels, seq_len), dtype=delta.dtype, buffer=nl.shared_hbm)
    for tile in nl.affine_range(channels // P):
        here = nl.ds(tile * P, P)
        delta_i = nl.ndarray((P, seq_len), dtype=delta.dtype, buffer=nl.sbuf)
        u_i = nl.ndarray((P, seq_len), dtype=u.dtype, buffer=nl.sbuf)
        A_i = nl.ndarray((P, state_size), dtype=A.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=delta_i, src=delta[here, :])
        nisa.dma_copy(dst=u_i, src=u[here, :])
        nisa.dma_copy(dst=A_i, src=A[here, :])
        deltaU = nl.ndarray((P, seq_len), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=deltaU, data1=delta_i, data2=u_i, op=nl.multiply)
        accum = nl.ndarray((P, seq_len), dtype=nl.float32, buffer=nl.sbuf)
        nisa.memset(dst=accum, value=0.0)
        for s in nl.affine_range(state_size):
            deltaA = nl.ndarray((P, seq_len), dtype=nl.float32, buffer=nl.sbuf)
            nisa.activation(dst=deltaA, op=nl.exp, data=delta_i, scale=A_i[:, s])
            B_i = nl.ndarray((P, seq_len), dtype=B.dtype, buffer=nl.sbuf)
            C_i = nl.ndarray((P, seq_len), dtype=C.dtype, buffer=nl.sbuf)
            row = [[0, P], [1, seq_len]]
            nisa.dma_copy(dst=B_i, src=B.ap(pattern=row, offset=s * seq_len))
            nisa.dma_copy(dst=C_i, src=C.ap(pattern=row, offset=s * seq_len))
            deltaBu = nl.ndarray((P, seq_len), dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_tensor(dst=deltaBu, data1=deltaU, data2=B_i, op=nl.multiply)
            states = nl.ndarray((P, seq_len), dtype=nl.float32, buffer=nl.sbuf)
            nisa.tensor_tensor_scan(
                dst=states, data0=deltaA, data1=deltaBu, initial=0.0, op0=nl.multiply, op1=nl.add
            )
            nisa.tensor_tensor(dst=deltaBu, data1=states, data2=C_i, op=nl.multiply)
            nisa.tensor_tensor(dst=accum, data1=accum, data2=deltaBu, op=nl.add)
        result = nl.ndarray((P, seq_len), dtype=output.dtype, buffer=nl.sbuf)
        nisa.tensor_copy(dst=result, src=accum)
        nisa.dma_copy(dst=output[here, :], src=result)
    return output
