"""Which tokens a batch predicts, and how much each of its rows counts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from bmojo_neuron.huggingface.padding import order

IGNORED = -100


def next_tokens(labels: Tensor, ignored: int, mask: Tensor | None) -> Tensor:
    """The token that each position predicts: the next valid one of its row.

    Args:
        labels: (B, T); at padding they mean nothing.
        ignored: the label that is none.
        mask: (B, T), nonzero = valid; None = all valid.

    Returns:
        (B, T) in the order of `labels`, `ignored` where nothing is predicted.
    """
    if mask is None:
        return _shifted(labels, ignored)
    index = order(mask != 0)
    targets = _shifted(labels.masked_fill(mask == 0, ignored).gather(1, index), ignored)
    return targets.scatter(1, index, targets)


def _shifted(labels: Tensor, ignored: int) -> Tensor:
    return pad(labels[:, 1:], (0, 1), value=ignored)


def row_shares(targets: Tensor, ignored: int, items: Tensor | int | None) -> Tensor:
    """Each row's share of the tokens to be predicted.

    Weighted by it, a mean per row adds up as the loss of the next token does: however a batch is
    cut into parts, the parts' sums are the whole's.

    Args:
        targets: (B, T) from `next_tokens`.
        ignored: the target that is none.
        items: all tokens to be predicted, of which these rows may be a part (gradient
            accumulation); None: those of these rows.

    Returns:
        (B,) float32.
    """
    counts = (targets != ignored).sum(1)
    whole = counts.sum() if items is None else torch.as_tensor(items, device=counts.device)
    return counts / whole
