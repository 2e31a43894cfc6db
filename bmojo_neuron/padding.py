"""Padded batches: every row's valid tokens are moved to its front, run, and their outputs moved
back.
"""

from __future__ import annotations

from torch import Tensor


def compact(ids: Tensor, mask: Tensor | None) -> tuple[Tensor, list[int] | None, Tensor | None]:
    """Valid tokens first.

    Args:
        ids: (B, T) token ids.
        mask: (B, T), nonzero = valid, in any pattern; None = all valid.

    Returns:
        The tokens (B, T), valid ones first; how many per row (None = all); and the permutation (B,
        T) applied (None = none).
    """
    if mask is None:
        return ids, None, None
    valid = mask != 0
    order = valid.logical_not().long().sort(dim=1, stable=True).indices
    return ids.gather(1, order), valid.sum(1).tolist(), order


def restore(x: Tensor, mask: Tensor | None) -> Tensor:
    """Put x (B, T, K), of compacted tokens, back into the columns of the mask that they had.

    A padding column repeats that of the valid token before it, so that a row's last column is that
    of its last valid token; before the first one it means nothing.
    """
    if mask is None:
        return x
    column = ((mask != 0).cumsum(1) - 1).clamp(min=0)
    return x.gather(1, column.unsqueeze(2).expand_as(x))
