"""Gated delta rule (Gated DeltaNet): a key-value memory that corrects what it recalls of a key.

    S_t = exp(g_t) S_{t-1} + k_t e_t^T                    S in R^{K x V}, per head
    e_t = beta_t (v_t - (exp(g_t) S_{t-1})^T k_t)
    o_t = S_t^T q_t

Source: Yang, Kautz & Hatamizadeh 2024, "Gated Delta Networks" (arXiv 2412.06464), section 3
(chunkwise form, with the UT transform: the errors e of a chunk solve a triangular system).
Letters: B batch, T tokens, H heads, K key dim, V value dim, Q chunk, c chunks.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

CHUNK = 32  # work within a chunk grows with Q, passes between chunks with T / Q


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over T tokens from `state`.

    A token with g = 0 and beta = 0 is no token: it leaves the state as it is (that is how padding
    is expressed).

    Args:
        q: (B, T, H, K) queries, normalised and scaled.
        k: (B, T, H, K) keys of norm 1 at most.
        v: (B, T, H, V) values.
        g: (B, T, H) float32 log decay, <= 0.
        beta: (B, T, H) float32 strength of the correction, in [0, 2].
        state: (B, H, K, V) float32; all arithmetic is in its dtype.

    Returns:
        o (B, T, H, V) in v's dtype, and the new state (B, H, K, V) float32.
    """
    length, dtype = q.shape[1], state.dtype
    if length == 1:  # the recurrence as it stands
        q, k, v_, g, beta = (x.squeeze(1).to(dtype) for x in (q, k, v, g, beta))
        state = state * g.exp()[..., None, None]
        error = beta.unsqueeze(-1) * (v_ - (k.unsqueeze(-2) @ state).squeeze(-2))  # (B, H, V)
        state = torch.addcmul(state, k.unsqueeze(-1), error.unsqueeze(-2))
        return (q.unsqueeze(-2) @ state).transpose(1, 2).to(v.dtype), state
    chunk = min(CHUNK, length)
    short = -length % chunk

    def chunks(x: Tensor) -> Tensor:  # (B, T, H, D) -> (B, H, c, Q, D)
        x = pad(x.to(dtype), (0, 0, 0, 0, 0, short)).unflatten(1, (-1, chunk))
        return x.permute(0, 3, 1, 2, 4)

    g, beta = chunks(g.unsqueeze(-1)), chunks(beta.unsqueeze(-1))  # (B, H, c, Q, 1)
    q, k, v_ = chunks(q), chunks(k), chunks(v)
    # Sums of their own, not differences of sums, which lose digits where decay is strong.
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).tril(-1)
    decay = g.where(later, 0).cumsum(-2).exp().tril()  # (B, H, c, Q, Q), from token to later token
    start = g.cumsum(-2).exp()  # (B, H, c, Q, 1), from before the chunk to after each token

    # Within a chunk: e_t + beta_t sum_{s<t} decay_ts (k_t . k_s) e_s = what is due without them,
    # which is beta_t (v_t - start_t S^T k_t) with S the state before the chunk, not yet known.
    recalled = (beta * decay * (k @ k.transpose(-1, -2))).tril(-1)
    due = torch.cat([beta * v_, beta * start * k], dim=-1)
    solved = torch.linalg.solve_triangular(recalled, due, upper=False, unitriangular=True)
    new, old = solved.split([v_.shape[-1], k.shape[-1]], dim=-1)  # e = new - old S
    read = (q @ k.transpose(-1, -2)) * decay  # (B, H, c, Q, Q)

    # Across chunks: the errors against the state before each, and the state after.
    q, k = q * start, (k * decay[..., -1, :].unsqueeze(-1)).transpose(-1, -2)
    through = start[..., -1:, :]  # (B, H, c, 1, 1)
    o = []
    for i in range(q.shape[2]):
        error = new[:, :, i] - old[:, :, i] @ state  # (B, H, Q, V)
        o.append(q[:, :, i] @ state + read[:, :, i] @ error)
        state = through[:, :, i] * state + k[:, :, i] @ error
    out = torch.cat(o, dim=2).transpose(1, 2)[:, :length]  # (B, T, H, V)
    return out.to(v.dtype), state
