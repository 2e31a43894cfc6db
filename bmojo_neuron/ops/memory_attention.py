"""Memory attention: one softmax over several memories (in-context, fading, eidetic), each with keys of its own.

Letters: B batch rows, H query heads, Hk key/value heads, r = H / Hk, T queries, S keys of one memory, D head dim.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Memory(NamedTuple):
    """What one memory offers to the queries.

    Attributes:
        q: (B, H, T, D) the queries as this memory sees them (rotated for its keys).
        k: (B, Hk, S, D) keys.
        v: (B, Hk, S, D) values.
        visible: (B, T, S) bool, or broadcastable to it: which key each query may see.
        bias: (B, H, S) added to the logits of every query, or None.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    visible: Tensor
    bias: Tensor | None = None


def memory_attention(memories: Sequence[Memory], scale: float) -> Tensor:
    """softmax over all memories jointly of (scale * q k^T + bias), then the weighted sum of their values.

    Every query must see at least one key in some memory. Query head h uses key/value head h // r.

    Returns:
        (B, H, T, D) in q's dtype.
    """
    rows, heads, length, width = memories[0].q.shape
    logits = []
    for m in memories:
        kv_heads = m.k.shape[1]
        grouped = (m.q * scale).reshape(rows, kv_heads, -1, width)  # (B, Hk, r*T, D)
        score = (grouped @ m.k.transpose(-1, -2)).view(rows, heads, length, -1)  # (B, H, T, S)
        if m.bias is not None:
            score = score + m.bias.unsqueeze(2)
        logits.append(score.masked_fill(~m.visible.unsqueeze(1), float("-inf")))
    exact = torch.promote_types(memories[0].q.dtype, torch.float32)
    weights = torch.cat(logits, dim=-1).softmax(-1, dtype=exact).to(memories[0].v.dtype)
    out = torch.zeros((), dtype=weights.dtype, device=weights.device)
    for m, w in zip(memories, weights.split([m.k.shape[2] for m in memories], dim=-1), strict=True):
        kv_heads = m.k.shape[1]
        out = out + w.reshape(rows, kv_heads, -1, w.shape[-1]) @ m.v  # (B, Hk, r*T, D)
    return out.reshape(rows, heads, length, width)
