"""Innovation selection: which tokens eidetic memory keeps at a boundary (spec/model 3.3).

Letters: B batch rows, M eidetic slots, C new candidates.
"""

import torch
from torch import Tensor


def selection(
    score: Tensor, position: Tensor, boundary: Tensor, slots: int, decay: float
) -> tuple[Tensor, Tensor]:
    """The `slots` candidates with the largest rank key score - decay * (boundary - position).

    Candidates come oldest first; ties go to the older one; empty candidates (position -1) rank
    last. Since decay shifts all keys alike as the boundary moves on, the top M of everything ever
    seen is the top M of (the last top M joined with what is new), however the sequence was cut.

    Args:
        score: (B, M+C) float32 innovation scores, in order of position.
        position: (B, M+C) int32, -1 = empty.
        boundary: (B,) int32 position of the boundary.
        slots: M.
        decay: lambda >= 0, per token.

    Returns:
        kept (B, M) and dropped (B, C): int64 indices into the candidates, each in order of
            position.
    """
    key = score if decay == 0.0 else score - decay * (boundary.unsqueeze(1) - position).float()
    key = key.masked_fill(position < 0, float("-inf"))
    order = torch.sort(key, dim=1, descending=True, stable=True).indices.int()
    kept, dropped = order[:, :slots].sort(dim=1).values, order[:, slots:].sort(dim=1).values
    return kept.long(), dropped.long()
