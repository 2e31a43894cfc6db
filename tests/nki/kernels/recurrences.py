"""A linear scan and a selective scan, each with an initial and a final state, and convolutions."""

from dataclasses import dataclass
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl

from tests.nki.kernels.tiles import F_MAX, P_MAX, load_tile, store_psum, tiles_of


@dataclass
class Cores(nl.NKIObject):
    """Which part of an axis this core works on."""

    count: int = 1
    index: int = 0

    def part(self, extent):
        share = -(-extent // self.count)
        start = self.index * share
        return start, min(share, extent - start)


def this_core():
    if nl.program_ndim() == 0:
        return Cores()
    return Cores(count=nl.num_programs(axes=0), index=nl.program_id(axis=0))


@nki.jit
def linear_scan(decay, x, initial=None, block=F_MAX):
    """h[t] = decay[t] * h[t - 1] + x[t] over decay, x [B, D, L]; initial [B, D].

    Returns h [B, D, L] and the last state [B, D]. On two cores each takes half of the rows.
    """
    B, D, L = x.shape
    assert decay.shape == x.shape, f"expected {x.shape}, got {decay.shape}"
    out = nl.ndarray((B, D, L), dtype=x.dtype, buffer=nl.shared_hbm)
    final = nl.ndarray((B, D), dtype=nl.float32, buffer=nl.shared_hbm)
    d0, count = this_core().part(D)
    for b in range(B):
        for d, rows in tiles_of(count, P_MAX):
            here = nl.ds(d0 + d, rows)
            state = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf, name=f"state_{b}_{d}")
            if initial != None:  # noqa: E711
                nisa.dma_copy(dst=state, src=initial[b, here].reshape((rows, 1)))
            else:
                nisa.memset(dst=state, value=0.0)
            for t, length in tiles_of(L, block):
                now = nl.ds(t, length)
                h = nl.ndarray((rows, length), dtype=nl.float32, buffer=nl.sbuf)
                nisa.tensor_tensor_scan(
                    dst=h,
                    data0=load_tile(decay[b, here, now]),
                    data1=load_tile(x[b, here, now]),
                    initial=state,
                    op0=nl.multiply,
                    op1=nl.add,
                )
                nisa.tensor_copy(dst=state, src=h[:, length - 1 : length])
                nisa.dma_copy(dst=out[b, here, now], src=h)
            nisa.dma_copy(dst=final[b, here].expand_dim(1), src=state)
    return out, final


@nki.jit
def selective_scan(dt, u, A, B, C, D, z, initial):
    """The Mamba-1 scan of one sequence, gated and with a skip.

    dt, u, z [D, L]; A [D, S]; B, C [S, L]; D [D]; initial [D, S] -> y [D, L], final [D, S].
    y sums over the states in PSUM; B and C reach all partitions by a column of ones.
    """
    channels, L = u.shape
    S = A.shape[1]
    y = nl.ndarray((channels, L), dtype=u.dtype, buffer=nl.shared_hbm)
    final = nl.ndarray((channels, S), dtype=nl.float32, buffer=nl.shared_hbm)
    ones = nl.ones((1, P_MAX), dtype=nl.float32, buffer=nl.sbuf)
    identity = nl.shared_identity_matrix(P_MAX, dtype=nl.float32)
    for d, rows in tiles_of(channels, P_MAX):
        here = slice(d, d + rows)
        A_tile = nl.load(A[here])
        skip = load_tile(D.reshape((channels, 1))[here], dtype=nl.float32)
        state = nl.load(initial[here], dtype=nl.float32)
        for t, length in tiles_of(L, F_MAX):
            now = slice(t, t + length)
            dt_tile, u_tile = nl.load(dt[here, now]), nl.load(u[here, now])
            dtu = nl.multiply(dt_tile, u_tile, dtype=nl.float32)
            total = nl.ndarray((rows, length), dtype=nl.float32, buffer=nl.psum)
            for s in range(S):
                spread = nl.matmul(ones[:, :rows], nl.load(B[s : s + 1, now], dtype=nl.float32),
                                   transpose_x=True)  # fmt: skip
                decay = nl.ndarray((rows, length), dtype=nl.float32, buffer=nl.sbuf)
                nisa.activation(dst=decay, op=nl.exp, data=dt_tile, scale=A_tile[:, s : s + 1])
                h = nl.ndarray((rows, length), dtype=nl.float32, buffer=nl.sbuf)
                nisa.tensor_tensor_scan(h, decay, nl.multiply(dtu, spread), state[:, s],
                                        op0=nl.multiply, op1=nl.add)  # fmt: skip
                nisa.tensor_copy(dst=state[:, s], src=h[:, length - 1])
                spread = nl.matmul(ones[:, :rows], nl.load(C[s : s + 1, now], dtype=nl.float32),
                                   transpose_x=True)  # fmt: skip
                nisa.nc_matmul(total, identity[:rows, :rows], nl.multiply(h, spread),
                               accumulate=s != 0)  # fmt: skip
            skipped = nl.ndarray((rows, length), dtype=nl.float32, buffer=nl.sbuf)
            nisa.scalar_tensor_tensor(
                dst=skipped, data=u_tile, op0=nl.multiply, operand0=skip, op1=nl.add, operand1=total
            )
            gate = nl.silu(nl.load(z[here, now], dtype=nl.float32))
            nl.store(y[here, now], nl.multiply(skipped, gate, dtype=u.dtype))
        nl.store(final[here], state)
    return y, final


@nki.jit
def depthwise_conv1d(x, weight, bias=None, state=None, activation=None):
    """Causal: x [B, C, L], weight [C, K], bias [C], state [B, C, K - 1] -> y, the new state."""
    B, C, L = x.shape
    K = weight.shape[1]
    y = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    new_state = nl.ndarray((B, C, K - 1), dtype=x.dtype, buffer=nl.shared_hbm)
    for c, rows in tiles_of(C, P_MAX):
        here = nl.ds(c, rows)
        w = nl.load(weight[here], dtype=nl.float32)
        for b in nl.affine_range(B):
            padded = nl.ndarray((rows, K - 1 + L), dtype=x.dtype, buffer=nl.sbuf)
            if state == None:  # noqa: E711
                nisa.memset(dst=padded[:, : K - 1], value=0.0)
            else:
                nisa.dma_copy(dst=padded[:, : K - 1], src=state[b, here])
            nisa.dma_copy(dst=padded[:, K - 1 :], src=x[b, here])
            total = nl.ndarray((rows, L), dtype=nl.float32, buffer=nl.sbuf)
            for k in nl.static_range(K):
                shifted, tap = padded[:, nl.ds(k, L)], w[:, k : k + 1]
                if k == 0:
                    nisa.tensor_scalar(dst=total, data=shifted, op0=nl.multiply, operand0=tap)
                else:
                    nisa.scalar_tensor_tensor(
                        total, shifted, op0=nl.multiply, operand0=tap, op1=nl.add, operand1=total
                    )
            column = load_tile(bias.reshape((C, 1))[here]) if bias != None else None  # noqa: E711
            out = nl.ndarray((rows, L), dtype=x.dtype, buffer=nl.sbuf)
            nisa.activation(dst=out, op=activation or nl.copy, data=total, bias=column)
            nisa.dma_copy(dst=y[b, here], src=out)
            nisa.dma_copy(dst=new_state[b, here], src=padded[:, L:])
    return y, new_state


@dataclass
class Conv(nl.NKIObject):
    """Geometry of a general convolution."""

    kernel: int
    stride: int = 1
    dilation: int = 1
    padding: Any = (0, 0)

    def length(self, L):
        reach = self.dilation * (self.kernel - 1) + 1
        return (L + self.padding[0] + self.padding[1] - reach) // self.stride + 1


@nki.jit
def conv1d(x, weight, bias=None, stride=1, dilation=1, padding=(0, 0)):
    """x [B, Cin, L], weight [Cout, Cin, K], bias [Cout] -> [B, Cout, L_out].

    One matmul per tap and tile of input channels, summed in PSUM.
    """
    B, c_in, L = x.shape
    c_out, c_in_, K = weight.shape
    if c_in != c_in_:
        raise ValueError(f"expected {c_in} input channels, got {c_in_}")
    conv = Conv(K, stride=stride, dilation=dilation, padding=padding)
    L_out = conv.length(L)
    print(f"conv1d: {B=} {c_in=} {c_out=} {K=} -> {L_out}")
    y = nl.ndarray((B, c_out, L_out), dtype=x.dtype, buffer=nl.shared_hbm)
    before, after = conv.padding
    inputs = tiles_of(c_in, P_MAX)
    for o, rows in tiles_of(c_out, P_MAX):
        taps = []
        for i, depth in inputs:  # [Cin, Cout, K], so that the taps of a tap are a strided slice
            tap = nl.ndarray((depth, rows, K), dtype=weight.dtype, buffer=nl.sbuf)
            nisa.dma_copy(
                dst=tap,
                src=weight.ap([[K, depth], [c_in * K, rows], [1, K]], offset=(o * c_in + i) * K),
            )
            taps.append(tap)
        column = nl.zeros((rows, 1), dtype=nl.float32)
        if bias != None:  # noqa: E711
            nisa.dma_copy(dst=column, src=bias[o : o + rows].expand_dim(1))
        for b in range(B):
            padded = []
            for i, depth in inputs:
                tile = nl.ndarray((depth, before + L + after), dtype=x.dtype, buffer=nl.sbuf)
                nisa.memset(tile, value=0.0)
                nisa.dma_copy(dst=tile[:, before : before + L], src=x[b, i : i + depth, :])
                padded.append(tile)
            for t, length in tiles_of(L_out, F_MAX):
                psum = nl.ndarray((rows, length), dtype=nl.float32, buffer=nl.psum)
                for n in range(len(inputs)):
                    for k in range(K):
                        start = t * conv.stride + k * conv.dilation
                        stop = start + (length - 1) * conv.stride + 1
                        nisa.nc_matmul(
                            dst=psum,
                            stationary=taps[n][:, :, k],
                            moving=padded[n][:, start : stop : conv.stride],
                        )
                biased = nl.add(psum, column)
                store_psum(y[b, o : o + rows, t : t + length], biased)
    return y
