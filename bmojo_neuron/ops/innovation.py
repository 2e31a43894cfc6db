"""Innovation: how far the fading output departs from what its own past announced (spec/model 3.2).

Letters: B batch, T tokens, d hidden size, k predictor taps.
"""

import torch
from torch import Tensor

EPS = 1e-6


def innovation(f: Tensor, weight: Tensor, tail: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One-step prediction of f from its k strictly past values, and the score of its failure.

        predicted_j = sum_{m=1..k} weight[m-1] * f_{j-m}
        s_j = log(mean_d (f_j - predicted_j)^2 + eps)
              - log(mean_d f_j^2 + mean_d predicted_j^2 + eps)

    Args:
        f: (B, T, d) fading outputs.
        weight: (k, d) float32, nearest past first.
        tail: (B, k, d) float32 (the dtype of all arithmetic), the fading outputs before f, newest
            last; zeros at the start of a sequence.

    Returns:
        score (B, T) float32, predicted (B, T, d) float32, and `extended` (B, k+T, d) float32, the
        tail followed by f, from which the caller takes the next tail (the k rows that end at its
        last valid token).
    """
    taps, length = weight.shape[0], f.shape[1]
    f = f.to(tail.dtype)
    extended = torch.cat([tail, f], dim=1)
    predicted = extended[:, taps - 1 : taps - 1 + length] * weight[0]
    for m in range(2, taps + 1):
        past = extended[:, taps - m : taps - m + length]
        predicted = torch.addcmul(predicted, past, weight[m - 1])
    error = (f - predicted).square().mean(-1)
    size = f.square().mean(-1) + predicted.square().mean(-1)
    return (error + EPS).log() - (size + EPS).log(), predicted, extended
