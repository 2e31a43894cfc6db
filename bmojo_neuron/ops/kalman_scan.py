"""Kalman scan (Gated KalmaNet): a key-value memory read through ridge regression on all past keys.

    A_t = exp(g_kk_t) A_{t-1} + k_t k_t^T                 A in R^{K x K}, per head
    U_t = exp(g_t) U_{t-1} + k_t v_t^T                    U in R^{K x V}, per head
    x_t ~ (A_t + ridge f I)^{-1} q_t, f = ||A_t||_F       by `num_iter` Chebyshev iterations
    o_t = U_t^T (q_t + alpha_t (x_t - q_t))

Source: the reference training code of Gated KalmaNet (spec/checkpoints 4).
Letters: B batch, T tokens, H heads, K key dim, V value dim, Q chunk, c chunks.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

CHUNK = 32  # work within a chunk grows with Q, passes between chunks with T / Q


def kalman_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    g_kk: Tensor,
    alpha: Tensor,
    kk: Tensor,
    kv: Tensor,
    ridge: float,
    num_iter: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run both recurrences over T tokens from `kk` and `kv`, with one solve per token.

    A token with g = g_kk = 0 and k = v = 0 is no token: it leaves the states as they are (that is
    how padding is expressed). Where A is zero, x is zero.

    Args:
        q: (B, T, H, K) queries of norm 1.
        k: (B, T, H, K) keys.
        v: (B, T, H, V) values.
        g: (B, T, H) float32 log decay of U, <= 0.
        g_kk: (B, T, H) float32 log decay of A, <= 0.
        alpha: (B, T, H) share of the solution against the query itself.
        kk: (B, H, K, K) float32, A: symmetric, no negative eigenvalue.
        kv: (B, H, K, V) float32, U; all arithmetic is in its dtype.
        ridge: > 0, relative to the norm of A.
        num_iter: part of the model: the iteration does not run to convergence. 0: x_t = q_t.

    Returns:
        o (B, T, H, V) in v's dtype, and the new kk and kv, float32.
    """
    length, dtype, rho = q.shape[1], kv.dtype, 1 / (1 + 2 * ridge)
    if length == 1:  # the recurrence as it stands
        q, k, v_ = (x.transpose(1, 2).to(dtype) for x in (q, k, v))  # (B, H, 1, K or V)
        g, g_kk, alpha = (x.transpose(1, 2).unsqueeze(-1).to(dtype) for x in (g, g_kk, alpha))
        kk = torch.addcmul(g_kk.exp() * kk, k.transpose(-1, -2), k)
        kv = torch.addcmul(g.exp() * kv, k.transpose(-1, -2), v_)
        step = _step(kk.square().sum((-2, -1), keepdim=True), rho)
        eye = torch.eye(k.shape[-1], dtype=dtype, device=k.device)
        matrix = (rho * eye - step * kk).transpose(-1, -2)
        x = _solve(q, step, lambda x: x @ matrix, rho, num_iter)
        return ((q + alpha * (x - q)) @ kv).transpose(1, 2).to(v.dtype), kk, kv
    chunk = min(CHUNK, length)
    short = -length % chunk

    def chunks(x: Tensor) -> Tensor:  # (B, T, H, D) -> (B, H, c, Q, D)
        x = pad(x.to(dtype), (0, 0, 0, 0, 0, short)).unflatten(1, (-1, chunk))
        return x.permute(0, 3, 1, 2, 4).contiguous()

    q, k, v_ = chunks(q), chunks(k), chunks(v)
    g, g_kk, alpha = (chunks(x.unsqueeze(-1)) for x in (g, g_kk, alpha))  # (B, H, c, Q, 1)
    # A_t = start_t A + sum_s decay_ts k_s k_s^T with A before the chunk: it is never laid out.
    start, decay = _decays(g_kk)
    before, kk = _across(kk, k, k, start, decay)
    own = (decay @ (k @ k.transpose(-1, -2)).square()) * decay
    cross = start * (k @ before * k).sum(-1).unsqueeze(-2) * decay
    old = start.square() * before.square().sum((-2, -1), keepdim=True)
    step = _step(old + (2 * cross + own).sum(-1, keepdim=True), rho)
    scaled = before.transpose(-1, -2), step * start, step * decay
    x = _solve(q, step, lambda x: rho * x - _read(x, k, k, *scaled), rho, num_iter)

    start, decay = _decays(g)
    before, kv = _across(kv, k, v_, start, decay)
    o = _read(q + alpha * (x - q), k, v_, before, start, decay)  # (B, H, c, Q, V)
    return o.flatten(2, 3).transpose(1, 2)[:, :length].to(v.dtype), kk, kv


def _decays(g: Tensor) -> tuple[Tensor, Tensor]:
    """From before the chunk to each token (B, H, c, Q, 1), from token to later token (.., Q, Q).

    Sums of their own, not differences of sums, which lose digits where decay is strong.
    """
    later = torch.ones(g.shape[-2], g.shape[-2], dtype=torch.bool, device=g.device).tril(-1)
    return g.cumsum(-2).exp(), g.where(later, 0).cumsum(-2).exp().tril()


def _across(
    state: Tensor, k: Tensor, v: Tensor, start: Tensor, decay: Tensor
) -> tuple[Tensor, Tensor]:
    """The state before each chunk, (B, H, c, K, V), and after the last."""
    to_end, through = decay[..., -1, :].unsqueeze(-1), start[..., -1:, :]
    added = (k * to_end).transpose(-1, -2) @ v
    before = []
    for i in range(k.shape[2]):
        before.append(state)
        state = torch.addcmul(added[:, :, i], through[:, :, i], state)
    return torch.stack(before, dim=2), state


def _read(x: Tensor, k: Tensor, v: Tensor, before: Tensor, start: Tensor, decay: Tensor) -> Tensor:
    """x_t (start_t before + sum_s decay_ts k_s v_s^T) for each token t, (B, H, c, Q, V)."""
    return start * (x @ before) + ((x @ k.transpose(-1, -2)) * decay) @ v


def _step(square: Tensor, rho: float) -> Tensor:
    """2 / (2 lam + f) with lam = ridge f, from f^2; 0 where f^2 is, so that the solution is too.

    By way of the logarithm: the gradient of 1 / sqrt(f^2) overflows long before f^2 vanishes.
    """
    live = square > torch.finfo(square.dtype).tiny
    return (2 * rho * (-0.5 * square.where(live, 1).log()).exp()).where(live, 0)


def _solve(
    q: Tensor, step: Tensor, contract: Callable[[Tensor], Tensor], rho: float, num_iter: int
) -> Tensor:
    """Chebyshev iterations for (A + lam I) x = q, where `contract` is x -> rho x - step A x.

    Since lam is in proportion to f, 1 - step lam = f / (2 lam + f) = rho, the same for every A.
    """
    if num_iter == 0:
        return q
    first, omega = step * q, 2.0
    before, x = torch.zeros_like(first), first
    for _ in range(num_iter):
        omega = 1 / (1 - rho**2 / 4 * omega)
        before, x = x, torch.lerp(before, first + contract(x), omega)
    return x
