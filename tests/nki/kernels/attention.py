"""Attention prefill: online softmax with causal, window, sink and cache; and a constant maximum.

q [H, L, d]; k, v [G, L, d] with H a multiple of G; d <= 128. Queries lie on partitions in the
online form, keys in the other. The cache [G, M, d] holds `used` keys before the active ones; how
many is known at run time only.
"""

from dataclasses import dataclass
from typing import Any

import nki
import nki.isa as nisa
import nki.language as nl

from tests.nki.kernels.tiles import F_MAX, P_MAX, load_tile, tiles_of

MASKED = -1e30
FP32_MIN = -3.4028234663852886e38  # all that range_select fills in


@dataclass
class Mask(nl.NKIObject):
    causal: bool = True
    window: int = 0  # 0: none

    def skips(self, q, rows, key, count):
        """Whether no query of the tile sees a key of the block."""
        if self.causal and key > q + rows - 1:
            return True
        return self.window > 0 and key + count - 1 <= q - self.window

    def apply(self, scores, q, key):
        """In place: keep key <= query, and key > query - window."""
        rows, count = scores.shape
        if self.causal and key + count - 1 > q:
            nisa.affine_select(
                dst=scores,
                pattern=[[-1, count]],
                channel_multiplier=1,
                offset=q - key,
                on_true_tile=scores,
                on_false_value=MASKED,
                cmp_op=nl.greater_equal,
            )
        if self.window > 0 and key <= q + rows - 1 - self.window:
            nisa.affine_select(
                dst=scores,
                pattern=[[1, count]],
                channel_multiplier=-1,
                offset=key - q + self.window,
                on_true_tile=scores,
                on_false_value=MASKED,
                cmp_op=nl.greater,
            )


class Running(nl.NKIObject):
    """What the online softmax carries of a tile of queries."""

    maximum: Any = None
    total: Any = None
    out: Any = None
    scale = 1.0

    def add(self, scores, values):
        """scores [rows, keys], not scaled; values: tiles [128, d] of the same keys."""
        rows, count = scores.shape
        d = self.out.shape[1]
        peak = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=peak, op=nl.maximum, data=scores, axis=1)
        new = nl.maximum(self.maximum, nl.multiply(peak, self.scale))
        minus = nl.negative(new)
        weights = nl.ndarray((rows, count), dtype=values[0].dtype, buffer=nl.sbuf)
        row_sum = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(
            dst=weights,
            op=nl.exp,
            data=scores,
            bias=minus,
            scale=self.scale,
            reduce_op=nl.add,
            reduce_res=row_sum,
            reduce_cmd=nisa.reduce_cmd.reset_reduce,
        )
        fade = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=fade, op=nl.exp, data=self.maximum, bias=minus)
        product = nl.ndarray((rows, d), dtype=nl.float32, buffer=nl.psum)
        for i, (start, size) in enumerate(tiles_of(count, P_MAX)):
            turned = nl.ndarray((size, rows), dtype=weights.dtype, buffer=nl.psum)
            nisa.nc_transpose(dst=turned, data=weights[:, nl.ds(start, size)])
            nisa.nc_matmul(product, nl.copy(turned), values[i], accumulate=i > 0)
        for state, new_part in ((self.total, row_sum), (self.out, product)):
            nisa.scalar_tensor_tensor(
                dst=state,
                data=state,
                op0=nl.multiply,
                operand0=fade,
                op1=nl.add,
                operand1=new_part,
            )
        self.maximum = new


def transposed(src):
    """[n, d] of HBM as [d, n] in SBUF, through the tensor engine."""
    n, d = src.shape
    turned = nl.ndarray((d, n), dtype=src.dtype, buffer=nl.sbuf)
    for start, size in tiles_of(n, P_MAX):
        psum = nl.ndarray((d, size), dtype=src.dtype, buffer=nl.psum)
        nisa.nc_transpose(dst=psum, data=load_tile(src[start : start + size]))
        nisa.tensor_copy(dst=turned[:, start : start + size], src=psum)
    return turned


def block_of(keys, values, start, count):
    here = slice(start, start + count)
    v = [load_tile(values[start + i : start + i + size]) for i, size in tiles_of(count, P_MAX)]
    return transposed(keys[here]), v


def product(q_T, k_T):
    scores = nl.ndarray((q_T.shape[1], k_T.shape[1]), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=scores, stationary=q_T, moving=k_T)
    return scores


@nki.jit
def attention_prefill(
    q, k, v, scale=None, causal=True, window=0, sink=None, k_cache=None, v_cache=None, used=None
):
    """Returns [H, L, d]; sink [H, 1] float32, used [1, 1] int32. Two cores: every second head."""
    H, L, d = q.shape
    G = k.shape[0]
    assert H % G == 0, f"{H} query heads for {G} of keys"
    assert d <= P_MAX, f"expected a head of at most {P_MAX}, got {d}"
    scale = scale if scale != None else 1.0 / d**0.5  # noqa: E711
    mask = Mask(causal, window=window)
    out = nl.ndarray(q.shape, dtype=q.dtype, buffer=nl.shared_hbm)
    for head in range(nl.program_id(0), H, max(nl.num_programs(0), 1)):
        group = head // (H // G)
        for start, rows in tiles_of(L, P_MAX):
            q_T = transposed(q[head, start : start + rows])
            state = Running(scale=scale, out=nl.zeros((rows, d), dtype=nl.float32))
            if sink != None:  # noqa: E711
                state.maximum = load_tile(sink[head : head + 1, :].ap([[0, rows], [1, 1]]))
                state.total = nl.ones((rows, 1), dtype=nl.float32)
            else:
                state.maximum = nl.full((rows, 1), MASKED, dtype=nl.float32)
                state.total = nl.zeros((rows, 1), dtype=nl.float32)
            if k_cache != None:  # noqa: E711
                add_cache(state, q_T, k_cache[group], v_cache[group], used, start, window)
            for key, count in tiles_of(L, F_MAX):
                if mask.skips(start, rows, key, count):
                    continue
                k_T, values = block_of(k[group], v[group], key, count)
                scores = nl.copy(product(q_T, k_T))
                mask.apply(scores, start, key)
                state.add(scores, values)
            share = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
            nisa.reciprocal(dst=share, data=state.total)
            result = nl.ndarray((rows, d), dtype=q.dtype, buffer=nl.sbuf)
            nisa.tensor_scalar(dst=result, data=state.out, op0=nl.multiply, operand0=share)
            nisa.dma_copy(dst=out[head, start : start + rows], src=result)
    return out


def add_cache(state, q_T, keys, values, used, start, window):
    """Keys j with j < used, and j > used + query - window: bounds that are known at run time."""
    rows = q_T.shape[1]
    end = load_tile(used.ap(pattern=[[0, rows], [1, 1]]), dtype=nl.float32)
    first = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    if window > 0:
        nisa.iota(dst=first, pattern=[[0, 1]], offset=start - window + 1, channel_multiplier=1)
        nisa.tensor_tensor(dst=first, data1=first, data2=end, op=nl.add)
    else:
        nisa.memset(dst=first, value=0.0)
    for key, count in tiles_of(keys.shape[0], F_MAX):
        k_T, v_tiles = block_of(keys, values, key, count)
        scores = nl.ndarray((rows, count), dtype=nl.float32, buffer=nl.sbuf)
        nisa.range_select(
            dst=scores,
            on_true_tile=product(q_T, k_T),
            comp_op0=nl.greater_equal,
            comp_op1=nl.less,
            bound0=first,
            bound1=end,
            range_start=key,
            on_false_value=FP32_MIN,
        )
        state.add(scores, v_tiles)


@nki.jit
def attention_constant_maximum(q, k, v, maximum, scale=None, causal=True):
    """As prefill, for scaled logits that never pass `maximum` and come within 80 of it.

    Keys lie on partitions: the weights need no transpose, and a column of ones behind the values
    makes the denominator.
    """
    H, L, d = q.shape
    scale = 1.0 / d**0.5 if scale == None else scale  # noqa: E711
    out = nl.ndarray(q.shape, dtype=q.dtype, buffer=nl.shared_hbm)
    bias = nl.full((P_MAX, 1), -maximum, dtype=nl.float32)
    for head in nl.affine_range(H):
        group = head // (H // k.shape[0])
        q_T, k_T = transposed(q[head]), transposed(k[group])
        keys = tiles_of(L, P_MAX)
        values = []
        for key, count in keys:
            tile = nl.ndarray((count, d + 1), dtype=v.dtype, buffer=nl.sbuf)
            nisa.dma_copy(dst=tile[:, 0:d], src=v[group, key : key + count])
            nisa.memset(dst=tile[:, d : d + 1], value=1.0)
            values.append(tile)
        for start, width in tiles_of(L, F_MAX):
            parts = tiles_of(width, P_MAX)
            sums = [nl.ndarray((n, d + 1), nl.float32, buffer=nl.psum) for _, n in parts]
            for i, (key, count) in enumerate(keys):
                if causal and key > start + width - 1:
                    break
                scores = product(k_T[:, nl.ds(key, count)], q_T[:, nl.ds(start, width)])
                weights = nl.ndarray((count, width), dtype=v.dtype, buffer=nl.sbuf)
                nisa.activation(weights, nl.exp, scores, bias=bias[0:count], scale=scale)
                if causal:
                    nisa.affine_select(
                        weights, [[1, width]], -1, weights, 0.0, nl.greater_equal, start - key
                    )
                for n, (at, size) in enumerate(parts):
                    nisa.nc_matmul(sums[n], weights[:, at : at + size], values[i])
            for n, (at, size) in enumerate(parts):
                share = nl.reciprocal(sums[n][:, d : d + 1], dtype=nl.float32)
                result = nl.ndarray((size, d), dtype=q.dtype, buffer=nl.sbuf)
                nisa.tensor_scalar(result, sums[n][:, 0:d], op0=nl.multiply, operand0=share)
                nisa.dma_copy(dst=out[head, start + at : start + at + size], src=result)
    return out
