"""Mamba-2 (Dao & Gu 2024): a decay per head, scanned as chunked matmuls.

Letters: B batch, T tokens, d hidden size, H heads, P head dim, N state size, K taps; x, B and C
have heads of their own before expansion to H.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus
from transformers import initialization as init

from bmojo_neuron.configuration import BMojoConfig
from bmojo_neuron.mixers.conv import CausalConv
from bmojo_neuron.norm import RMSNorm
from bmojo_neuron.ops import Ops
from bmojo_neuron.state import State, StatePart, recurrent_dtype
from bmojo_neuron.window import Call, StepCall


class Mamba2(nn.Module):
    """Mamba-2, and what its descendants add: heads of x, B and C as many as those of values, keys
    and queries, norms and rotary embedding of B and C before the convolution.

    The gate comes before the last norm, which is over groups of heads.
    """

    def __init__(self, config: BMojoConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.heads, self.head_dim = config.mamba2_num_heads, config.mamba2_head_dim  # H, P
        self.state_size, self.taps = config.mamba2_state_size, config.mamba2_conv_size  # N, K
        self.x_heads, self.c_heads = config.mamba2_num_x_heads, config.mamba2_num_c_heads
        self.b_heads, self.rope = config.mamba2_num_kv_heads, config.mamba2_rope
        self.dt_limit = config.mamba2_dt_min, config.mamba2_dt_max
        self.norm_groups, self.norm_eps = config.mamba2_norm_groups, config.mamba2_norm_eps
        inner = self.heads * self.head_dim
        self.widths = [  # of x, B, C: all pass the convolution
            self.x_heads * self.head_dim,
            self.b_heads * self.state_size,
            self.c_heads * self.state_size,
        ]
        self.in_proj = nn.Linear(
            config.hidden_size,
            inner + sum(self.widths) + self.heads,
            bias=config.mamba2_proj_bias,
        )
        self.conv = CausalConv(sum(self.widths), self.taps, config.mamba2_conv_bias, ops)
        self.b_norm = RMSNorm(self.state_size, 1e-6) if config.mamba2_qk_norm else nn.Identity()
        self.c_norm = RMSNorm(self.state_size, 1e-6) if config.mamba2_qk_norm else nn.Identity()
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        # What weight decay must spare is named as a bias or a norm: transformers goes by names.
        self.a_log_bias = nn.Parameter(torch.empty(self.heads))
        self.skip_bias = nn.Parameter(torch.empty(self.heads))  # D of the paper: y += D * x
        self.norm = nn.Parameter(torch.empty(self.heads, self.head_dim))
        self.out_proj = nn.Linear(inner, config.hidden_size, bias=config.mamba2_proj_bias)

    def reset(self) -> None:
        """Initial values that are not the usual normal ones: dt log-uniform in [1e-3, 0.1], A in
        [1, 16].
        """
        dt = torch.exp(torch.empty(self.heads).uniform_(math.log(1e-3), math.log(0.1)))
        init.copy_(self.dt_bias, dt + torch.log(-torch.expm1(-dt)))
        init.copy_(self.a_log_bias, torch.empty(self.heads).uniform_(1, 16).log())
        init.ones_(self.skip_bias)
        init.ones_(self.norm)

    def parts(self, dtype: torch.dtype) -> list[StatePart]:
        """conv: the last K-1 inputs of the convolution; ssm: the recurrent state, float32."""
        return [
            StatePart("conv", (self.taps - 1, sum(self.widths)), dtype),
            StatePart("ssm", (self.heads, self.head_dim, self.state_size), recurrent_dtype(dtype)),
        ]

    def forward(self, u: Tensor, call: Call, state: State) -> tuple[Tensor, State]:
        """u (B, T, d) -> f (B, T, d) and the new state."""
        batch = u.shape[0]
        inner = self.heads * self.head_dim
        z, xbc, dt = self.in_proj(u).split([inner, sum(self.widths), self.heads], dim=-1)
        x, b, c = xbc.split(self.widths, dim=-1)
        b = self.b_norm(b.unflatten(-1, (self.b_heads, self.state_size)))
        c = self.c_norm(c.unflatten(-1, (self.c_heads, self.state_size)))
        if self.rope:
            b, c = (call.here(v.transpose(1, 2)).transpose(1, 2) for v in (b, c))
        # As the state keeps it, autocast or not.
        xbc = torch.cat([x, b.flatten(-2), c.flatten(-2)], dim=-1).to(u.dtype)
        if isinstance(call, StepCall):
            tail, ssm = state["conv"], state["ssm"]
        else:
            tail = xbc.new_zeros(batch, self.taps - 1, xbc.shape[-1])
            size = (batch, self.heads, self.head_dim, self.state_size)
            ssm = u.new_zeros(size, dtype=recurrent_dtype(u.dtype))

        y, extended = self.conv(xbc, tail)
        x, b, c = y.split(self.widths, dim=-1)
        x = self._expand(x, self.x_heads)  # (B, T, H, P)
        b, c = self._expand(b, self.b_heads), self._expand(c, self.c_heads)  # (B, T, H, N)
        dt = softplus(dt.to(ssm.dtype) + self.dt_bias)  # (B, T, H)
        if self.dt_limit != (0.0, None):
            dt = dt.clamp(*self.dt_limit)
        if call.valid is not None:
            dt = dt * call.valid.unsqueeze(-1)  # dt = 0: the token leaves the state as it is
        y, ssm = self.ops.ssd_scan(x, dt, -self.a_log_bias.to(ssm.dtype).exp(), b, c, ssm)
        y = y + x * self.skip_bias.unsqueeze(-1)
        y = y * silu(z.unflatten(-1, (self.heads, self.head_dim)))
        groups = y.flatten(-2).unflatten(-1, (self.norm_groups, -1))
        groups = nn.functional.rms_norm(groups, groups.shape[-1:], eps=self.norm_eps)
        f = self.out_proj((groups.view(y.shape) * self.norm).flatten(-2).to(u.dtype))
        if isinstance(call, StepCall):
            return f, {"conv": call.tail(extended, self.taps - 1), "ssm": ssm}
        return f, {}

    def _expand(self, v: Tensor, heads: int) -> Tensor:
        """(B, T, heads * K) -> (B, T, H, K): neighbours share a head."""
        apart: Tensor = v.unflatten(-1, (heads, -1))
        return apart.repeat_interleave(self.heads // heads, dim=2)
