"""SSD scan (Mamba-2): a linear recurrence with a scalar decay per head, as chunked matmuls.

    S_t = exp(dt_t A) S_{t-1} + dt_t * x_t B_t^T          S in R^{P x N}, per head
    y_t = S_t C_t

Source: Dao & Gu 2024, "Transformers are SSMs", section 6 (block decomposition).
Letters: B batch, T tokens, H heads, P head dim (value), N state size, Q chunk, c chunks.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

CHUNK = 64  # work within a chunk grows with Q, passes between chunks with T / Q


def ssd_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over T tokens from `state`.

    A token with dt = 0 is no token: it leaves the state as it is (that is how padding is
    expressed).

    Args:
        x: (B, T, H, P) values.
        dt: (B, T, H) float32 step sizes, >= 0.
        a: (H,) float32 decay rates, < 0.
        b: (B, T, H, N) input directions.
        c: (B, T, H, N) read-out directions.
        state: (B, H, P, N) float32; all arithmetic is in its dtype.

    Returns:
        y (B, T, H, P) in x's dtype, and the new state (B, H, P, N) float32.
    """
    batch, length, heads, width = x.shape
    if length == 1:  # the recurrence as it stands
        x_, b_, c_ = (v.squeeze(1).to(state.dtype) for v in (x, b, c))
        step = dt.squeeze(1)
        decay = (step * a).exp()[..., None, None]
        added = (x_ * step.unsqueeze(-1)).unsqueeze(-1) * b_.unsqueeze(-2)  # (B, H, P, N)
        state = torch.addcmul(added, state, decay)
        return (state * c_.unsqueeze(-2)).sum(-1).unsqueeze(1).to(x.dtype), state
    chunk = min(CHUNK, length)
    short = -length % chunk
    x_, b_, c_ = (
        pad(v.to(state.dtype), (0, 0, 0, 0, 0, short)) if short else v.to(state.dtype)
        for v in (x, b, c)
    )
    dt_ = pad(dt, (0, 0, 0, short)) if short else dt
    chunks = x_.shape[1] // chunk

    def heads_first(v: Tensor) -> Tensor:  # (B, T, H, K) -> (B, H, c, Q, K)
        return v.reshape(batch, chunks, chunk, heads, -1).permute(0, 3, 1, 2, 4)

    log_decay = (dt_ * a).reshape(batch, chunks, chunk, heads).permute(0, 3, 1, 2)  # (B, H, c, Q)
    cum = log_decay.cumsum(-1)  # (B, H, c, Q), from before the chunk to after each token
    u = heads_first(x_ * dt_.unsqueeze(-1))  # (B, H, c, Q, P)
    b_, c_ = heads_first(b_), heads_first(c_)  # (B, H, c, Q, N)

    # Within a chunk: as in attention, each token reads the earlier ones, through the decay between.
    lag = cum.unsqueeze(-1) - cum.unsqueeze(-2)  # (B, H, c, Q, Q)
    causal = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).tril()
    decay = lag.masked_fill(~causal, float("-inf")).exp()
    y = ((c_ @ b_.transpose(-1, -2)) * decay) @ u  # (B, H, c, Q, P)

    # Across chunks: what each one adds to the state, then the state before each.
    to_end = (cum[..., -1:] - cum).exp().unsqueeze(-1)  # (B, H, c, Q, 1)
    added = u.transpose(-1, -2) @ (b_ * to_end)  # (B, H, c, P, N)
    across = cum[..., -1].exp()  # (B, H, c)
    before = []
    for i in range(chunks):
        before.append(state)
        state = state * across[:, :, i, None, None] + added[:, :, i]
    entering = torch.stack(before, dim=2)  # (B, H, c, P, N)
    y = y + (c_ * cum.exp().unsqueeze(-1)) @ entering.transpose(-1, -2)

    y = y.permute(0, 2, 3, 1, 4).reshape(batch, chunks * chunk, heads, width)[:, :length]
    return y.to(x.dtype), state
