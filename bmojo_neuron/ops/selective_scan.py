"""Selective scan (Mamba, S6): a linear recurrence with a decay per channel and state entry.

    h_t = exp(dt_t A) h_{t-1} + dt_t * x_t B_t            h in R^{E x N}
    y_t = h_t C_t

Source: Gu & Dao 2023, "Mamba" (arXiv 2312.00752), section 3.
Letters: B batch, T tokens, E channels, N state size.
"""

import torch
from torch import Tensor


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
    y = []
    for t in range(x.shape[1]):
        step = dt[:, t].unsqueeze(-1)  # (B, E, 1)
        added = step * x_[:, t].unsqueeze(-1) * b[:, t].unsqueeze(1)  # (B, E, N)
        state = torch.addcmul(added, (step * a).exp(), state)
        y.append((state @ c[:, t].unsqueeze(-1)).squeeze(-1))
    return torch.stack(y, dim=1).to(x.dtype), state
