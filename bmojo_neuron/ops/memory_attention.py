"""Memory attention: one softmax over several memories, each with keys of its own.

Letters: B batch rows, H query heads, Hk key/value heads, r = H / Hk, T queries, S keys of one
memory, D head dim.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Memory(NamedTuple):
    """What one memory offers to the queries.

    Attributes:
        q: (B, H, T, D) the queries as this memory sees them: scaled, and rotated for its keys.
        k: (B, Hk, S, D) keys.
        v: (B, Hk, S, D) values.
        visible: (B, 1, T, S) bool: which key each query may see.
        bias: (B, H, S) added to the logits of every query, or None.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    visible: Tensor
    bias: Tensor | None = None


def memory_attention(memories: Sequence[Memory]) -> Tensor:
    """softmax over all memories jointly of (q k^T + bias), then the weighted sum of their values.

    Every query must see at least one key in some memory. Query head h uses key/value head h // r.

    Returns:
        (B, H, T, D) in q's dtype.
    """
    rows, heads, length, width = memories[0].q.shape
    logits = []
    for m in memories:
        kv_heads = m.k.shape[1]
        grouped = m.q.reshape(rows, kv_heads, -1, width)  # (B, Hk, r*T, D)
        score = (grouped @ m.k.transpose(-1, -2)).view(rows, heads, length, -1)  # (B, H, T, S)
        if m.bias is not None:
            score = score + m.bias.unsqueeze(2)
        logits.append(torch.where(m.visible, score, float("-inf")))
    exact = torch.promote_types(memories[0].q.dtype, torch.float32)
    weights = torch.cat(logits, dim=-1).softmax(-1, dtype=exact).to(memories[0].v.dtype)
    shares = weights.split([m.k.shape[2] for m in memories], dim=-1)
    parts = [
        w.reshape(rows, m.k.shape[1], -1, w.shape[-1]) @ m.v  # (B, Hk, r*T, D)
        for m, w in zip(memories, shares, strict=True)
    ]
    out: Tensor = functools.reduce(torch.add, parts)
    return out.view(rows, heads, length, width)
