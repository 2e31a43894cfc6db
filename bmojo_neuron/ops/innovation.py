"""Innovation: how far the fading output departs from what its own past announced, against how far
it does so on average (spec/model 3.2, the innovation test of filtering theory).

Letters: B batch, T tokens, d hidden size, k predictor taps, e innovation, r its running average,
tau the average's time constant.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-6
CHUNK = 64  # tokens averaged by one product


def innovation(
    f: Tensor, weight: Tensor, tail: Tensor, running: Tensor, unit: Tensor, time_constant: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One-step prediction of f from its k strictly past values, and the score of its failure.

        predicted_j = sum_{m=1..k} weight[m-1] * f_{j-m}
        e_j = mean_d (f_j - predicted_j)^2
        s_j = log(e_j + eps) - log(unit * r_j + eps)
        r_{j+1} = r_j + (e_j / unit - r_j) / tau

    Args:
        f: (B, T, d) fading outputs.
        weight: (k, d) float32, nearest past first.
        tail: (B, k, d) float32 (the dtype of all arithmetic), the fading outputs before f, newest
            last; zeros at the start of a sequence.
        running: (B,) float32, r before the first token: the average of e in units of `unit`; one at
            the start of a sequence.
        unit: (1,) float32, the average that a sequence starts with.
        time_constant: tau >= 1, in tokens.

    Returns:
        score (B, T) float32; predicted (B, T, d) float32; and what the caller takes the next state
        from: `extended` (B, k+T, d) float32, the tail followed by f, of which the k rows that end
        at its last valid token are the next tail, and `means` (B, T+1) float32, r before each
        token and after the last.
    """
    taps, length = weight.shape[0], f.shape[1]
    f = f.to(tail.dtype)
    extended = torch.cat([tail, f], dim=1)
    predicted = extended[:, taps - 1 : taps - 1 + length] * weight[0]
    for m in range(2, taps + 1):
        past = extended[:, taps - m : taps - m + length]
        predicted = torch.addcmul(predicted, past, weight[m - 1])
    error = (f - predicted).square().mean(-1)
    means = running_mean(error / unit, running, time_constant)
    score = (error + EPS).log() - (unit * means[:, :-1] + EPS).log()
    return score, predicted, extended, means


def running_mean(x: Tensor, mean: Tensor, time_constant: float) -> Tensor:
    """The exponential average of x (B, T) before each token and after the last, (B, T+1).

    Args:
        mean: (B,) that before the first token.
        time_constant: tau >= 1, in tokens: mean <- mean + (x - mean) / tau.
    """
    if x.shape[1] == 1:
        return torch.stack([mean, torch.lerp(mean, x[:, 0], 1 / time_constant)], dim=1)
    size = min(CHUNK, x.shape[1])
    age = torch.arange(size, dtype=x.dtype, device=x.device)
    kept = (1 - 1 / time_constant) ** (age + 1)  # of the mean, after 1 .. size tokens
    share = kept.new_tensor(1 / time_constant) * (1 - 1 / time_constant) ** age
    lag = (age.unsqueeze(0) - age.unsqueeze(1)).long()  # [token, after which token]
    shares = share[lag.clamp(min=0)].where(lag >= 0, 0)  # (size, size)
    means = [mean.unsqueeze(1)]
    for part in x.split(size, dim=1):
        n = part.shape[1]
        means.append(means[-1][:, -1:] * kept[:n] + part @ shares[:n, :n])
    return torch.cat(means, dim=1)
