import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def rmsnorm(x, weight, eps=1e-6):
    """x [rows, columns], weight [1, columns]; rows need not fill the last tile."""
    rows, columns = x.shape
    P = 128
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    w = nl.ndarray((P, columns), dtype=weight.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=w, src=weight.ap(pattern=[[0, P], [1, columns]]))
    eps_tile = nl.ndarray((P, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=eps_tile, value=eps)
    for i in range((rows + P - 1) // P):
        start = i * P
        size = min(P, rows - start)
        tile = nl.ndarray((P, columns), dtype=x.dtype, buffer=nl.sbuf)
        nisa.dma_copy(dst=tile[0:size, :], src=x[start : start + size, :])
        square = nl.ndarray((P, columns), dtype=nl.float32, buffer=nl.sbuf)
        total = nl.ndarray((P, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation_reduce(
            dst=square[0:size],
            op=nl.square,
            data=tile[0:size],
            reduce_op=nl.add,
            reduce_res=total[0:size],
        )
        scale = nl.ndarray((P, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(
            dst=scale[0:size],
            op=nl.rsqrt,
            data=total[0:size],
            scale=1.0 / columns,
            bias=eps_tile[0:size],
        )
        y = nl.ndarray((P, columns), dtype=x.dtype, buffer=nl.sbuf)
        nisa.scalar_tensor_tensor(
            dst=y[0:size],
            data=tile[0:size],
            op0=nl.multiply,
            operand0=scale[0:size],
            op1=nl.multiply,
            operand1=w[0:size],
        )
        nisa.dma_copy(dst=out[start : start + size], src=y[0:size])
    return out
