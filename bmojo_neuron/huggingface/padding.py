"""Padded batches: every row's valid tokens are moved to its front, run, and their outputs moved
back. All of it can be traced.
"""

from __future__ import annotations

import torch
from torch import Tensor


def compact(tokens: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Valid tokens first.

    Args:
        tokens: (B, T) ids or (B, T, d) embeddings.
        valid: (B, T) bool, in any pattern; None = all valid.

    Returns:
        The tokens, valid ones first, and how many of them each row has (B,) (None = all).
    """
    if valid is None:
        return tokens, None
    index = order(valid)
    if tokens.dim() == 3:
        index = index.unsqueeze(2).expand_as(tokens)
    return tokens.gather(1, index), valid.sum(1)


def order(valid: Tensor) -> Tensor:
    """The permutation (B, T) that `compact` applies: valid columns first, each kind in order."""
    first = valid.cumsum(1)
    behind = first[:, -1:] + valid.logical_not().cumsum(1)
    place = torch.where(valid, first, behind) - 1
    column = torch.arange(valid.shape[1], device=valid.device).expand_as(place)
    return torch.empty_like(place).scatter(1, place, column)


def restore(x: Tensor, valid: Tensor | None) -> Tensor:
    """Put x (B, T, ...), of compacted tokens, back into the columns that they had.

    A padding column repeats that of the valid token before it, so that a row's last column is that
    of its last valid token; before the first one it means nothing.
    """
    if valid is None:
        return x
    column = (valid.cumsum(1) - 1).clamp(min=0)
    return x.gather(1, column.view(*column.shape, *[1] * (x.dim() - 2)).expand_as(x))
