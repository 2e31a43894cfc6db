"""Memory attention: one softmax over several memories, each with keys of its own.

Letters: B batch rows, H query heads, Hk key/value heads, r = H / Hk, T queries, S keys of one
memory, D head dim.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

FEWEST_TILED = 8  # queries; with fewer, tiles gain nothing


class Visibility:
    """Which keys each query may see, by position: near <= query - key < far, where there is a key.

    A kernel compares positions; only the reference lays the answer out as a mask, once for all that
    share it.

    Args:
        query: (B, T) int32 positions.
        key: (B, S) int32 positions, negative = no such key.
        near: least distance.
        far: first distance at which a key is gone, or None for never.
    """

    def __init__(self, query: Tensor, key: Tensor, near: int = 0, far: int | None = None) -> None:
        self.query, self.key, self.near, self.far = query, key, near, far
        self._mask: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """(B, 1, T, S) bool, alike for all heads."""
        if self._mask is None:
            lag = self.query.unsqueeze(2) - self.key.unsqueeze(1)
            seen = (lag >= self.near) & (self.key >= 0).unsqueeze(1)
            self._mask = (seen if self.far is None else seen & (lag < self.far)).unsqueeze(1)
        return self._mask


class Memory(NamedTuple):
    """What one memory offers to the queries.

    Attributes:
        q: (B, H, T, D) the queries as this memory sees them: scaled, and rotated for its keys.
        k: (B, Hk, S, D) keys.
        v: (B, Hk, S, D) values.
        visible: which key each query may see.
        bias: (B, H, S) added to the logits of every query, or None.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    visible: Visibility
    bias: Tensor | None = None


def memory_attention(memories: Sequence[Memory]) -> Tensor:
    """softmax over all memories jointly of (q k^T + bias), then the weighted sum of their values.

    Every query must see at least one key in some memory. Query head h uses key/value head h // r.
    A key that no query sees is absent: whatever it, its value or its bias holds changes nothing.
    Several queries without gradient on a CPU run in tiles (`tiled`), all else as it is defined.

    Returns:
        (B, H, T, D) in q's dtype.
    """
    first = memories[0].q
    gradient = torch.is_grad_enabled() and any(_asks_gradient(m) for m in memories)
    if (
        first.shape[2] < FEWEST_TILED
        or first.device.type != "cpu"
        or first.dtype == torch.float64  # the truth that others are held against
        or torch.compiler.is_exporting()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or gradient
    ):
        # A logit that is not seen is replaced; only a gradient would still meet its key or bias.
        return defined([_present(m, keys=gradient) for m in memories])
    return tiled([_present(m, keys=True) for m in memories])


def _present(memory: Memory, keys: bool) -> Memory:
    """The same with zeros for what no query sees: its weight is 0, but 0 times NaN would be NaN.

    Values always, keys and biases where asked: each costs a copy.
    """
    seen = memory.visible.mask.any(2)  # (B, 1, S)
    memory = memory._replace(v=memory.v.where(seen.unsqueeze(3), 0))
    if not keys:
        return memory
    bias = None if memory.bias is None else memory.bias.where(seen, 0)
    return memory._replace(k=memory.k.where(seen.unsqueeze(3), 0), bias=bias)


def _asks_gradient(memory: Memory) -> bool:
    return any(isinstance(x, Tensor) and x.requires_grad for x in memory)


def defined(memories: Sequence[Memory]) -> Tensor:
    """The op as it is defined, with all logits (B, H, T, S of all memories) side by side."""
    rows, heads, length, width = memories[0].q.shape
    logits = []
    for m in memories:
        kv_heads = m.k.shape[1]
        grouped = m.q.reshape(rows, kv_heads, -1, width)  # (B, Hk, r*T, D)
        score = (grouped @ m.k.transpose(-1, -2)).view(rows, heads, length, -1)  # (B, H, T, S)
        if m.bias is not None:
            score = score + m.bias.unsqueeze(2)
        logits.append(torch.where(m.visible.mask, score, float("-inf")))
    exact = torch.promote_types(memories[0].q.dtype, torch.float32)
    weights = torch.cat(logits, dim=-1).softmax(-1, dtype=exact).to(memories[0].v.dtype)
    shares = weights.split([m.k.shape[2] for m in memories], dim=-1)
    parts = [
        w.reshape(rows, m.k.shape[1], -1, w.shape[-1]) @ m.v  # (B, Hk, r*T, D)
        for m, w in zip(memories, shares, strict=True)
    ]
    out: Tensor = functools.reduce(torch.add, parts)
    return out.view(rows, heads, length, width)


def tiled(memories: Sequence[Memory]) -> Tensor:
    """The same on a CPU without the logits in memory: each memory's softmax by itself, in tiles
    (flash attention; Dao et al. 2022), then the mean of these, weighted by their sums of exponents.
    """
    q, k, v, visible, bias = zip(*memories, strict=True)
    out: Tensor = _tiled(list(q), list(k), list(v), [x.mask for x in visible], list(bias))
    return out


@torch.library.custom_op("bmojo::tiled_attention", mutates_args=())
def _tiled(
    q: list[Tensor],
    k: list[Tensor],
    v: list[Tensor],
    visible: list[Tensor],
    bias: list[Tensor | None],
) -> Tensor:
    """An op of its own: a compiler would lay masks (B, 1, T, S) out in full for each head."""
    rows, heads, length, width = q[0].shape
    outs, sums = [], []
    for queries, keys, values, seen, added in zip(q, k, v, visible, bias, strict=True):
        mask = torch.where(seen, 0.0, float("-inf")).to(queries.dtype)  # (B, 1, T, S)
        if added is not None:
            mask = mask + added.unsqueeze(2)  # (B, H, T, S)
        kv_heads, size = keys.shape[1:3]
        mask = mask.expand(-1, heads, -1, -1)
        if kv_heads != heads:
            mask = mask.reshape(rows, kv_heads, -1, size)  # (B, Hk, r*T, S)
        grouped = queries.reshape(rows, kv_heads, -1, width)
        out, log_sum = _flash(grouped, keys, values, attn_mask=mask, scale=1.0)
        unseen = ~seen.any(-1)  # (B, 1, T)
        outs.append(out.reshape(rows, heads, length, width))
        sums.append(log_sum.reshape(rows, heads, length).masked_fill(unseen, float("-inf")))
    shares = torch.stack(sums).softmax(0).to(outs[0].dtype)  # (memories, B, H, T)
    parts = [out * share.unsqueeze(-1) for out, share in zip(outs, shares, strict=True)]
    joint: Tensor = functools.reduce(torch.add, parts)
    return joint


@_tiled.register_fake
def _(q: list[Tensor], *_: object) -> Tensor:
    return torch.empty_like(q[0], memory_format=torch.contiguous_format)


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
