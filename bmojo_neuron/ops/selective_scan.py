"""Selective scan (Mamba, S6): a linear recurrence with a decay per channel and state entry.

    h_t = exp(dt_t A) h_{t-1} + dt_t * x_t B_t            h in R^{E x N}
    y_t = h_t C_t

Source: Gu & Dao 2023, "Mamba" (arXiv 2312.00752), section 3; within a chunk the associative scan
of Blelloch 1990, "Prefix sums and their applications".
Letters: B batch, T tokens, E channels, N state size, Q chunk.
"""

import torch
from torch import Tensor

CHUNK = 32  # all Q states are laid out: more leave the cache, fewer make more calls


def selective_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over T tokens from `state`.

    A token with dt = 0 is no token: it leaves the state as it is (that is how padding is
    expressed).

    Args:
        x: (B, T, E) values.
        dt: (B, T, E) float32 step sizes, >= 0.
        a: (E, N) float32 decay rates, < 0.
        b: (B, T, N) input directions.
        c: (B, T, N) read-out directions.
        state: (B, E, N) float32; all arithmetic is in its dtype.

    Returns:
        y (B, T, E) in x's dtype, and the new state (B, E, N) float32.
    """
    x_, dt, a, b, c = (v.to(state.dtype) for v in (x, dt, a, b, c))
    if x.shape[1] == 1:  # the recurrence as it stands
        step = dt.transpose(1, 2)  # (B, E, 1)
        state = torch.addcmul(step * x_.transpose(1, 2) * b, (step * a).exp(), state)
        return (state @ c.transpose(1, 2)).transpose(1, 2).to(x.dtype), state
    y = []
    for xs, steps, bs, cs in zip(*(v.split(CHUNK, dim=1) for v in (x_, dt, b, c)), strict=True):
        decay = (steps.unsqueeze(-1) * a).exp()  # (B, Q, E, N)
        added = (steps * xs).unsqueeze(-1) * bs.unsqueeze(2)
        states = _scan(decay, added, state)
        y.append((states @ cs.unsqueeze(-1)).squeeze(-1))
        state = states[:, -1]
    return torch.cat(y, dim=1).to(x.dtype), state.contiguous()


def _scan(decay: Tensor, added: Tensor, state: Tensor) -> Tensor:
    """The state after each token, (B, Q, E, N): pairs of tokens first, then the ones between."""
    length, half = added.shape[1], added.shape[1] // 2
    if length == 1:
        return torch.addcmul(added, decay, state.unsqueeze(1))
    first, second, left, right = decay[:, ::2], decay[:, 1::2], added[:, ::2], added[:, 1::2]
    pair = torch.addcmul(right, second, left[:, :half])
    after = _scan(first[:, :half] * second, pair, state)  # after each second token
    before = torch.cat([state.unsqueeze(1), after], dim=1)[:, : length - half]
    between = torch.addcmul(left, first, before)
    both = torch.stack([between[:, :half], after], dim=2).flatten(1, 2)
    return both if length == 2 * half else torch.cat([both, between[:, half:]], dim=1)
