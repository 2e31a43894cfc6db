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
        T) applied (None = none), for `restore`.
    """
    if mask is None:
        return ids, None, None
    valid = mask != 0
    order = valid.logical_not().long().sort(dim=1, stable=True).indices
    return ids.gather(1, order), valid.sum(1).tolist(), order


def restore(x: Tensor, order: Tensor | None) -> Tensor:
    """Put x (B, T, K) back into the order of the padded batch."""
    if order is None:
        return x
    return x.scatter(1, order.unsqueeze(2).expand_as(x), x)
