"""Mamba-2 (Dao & Gu 2024), with per-head norms of B and C.

Letters: B batch, T tokens, d hidden size, H heads, G heads of x and B before expansion, P head dim,
N state size.
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
    """Mamba-2 with per-head norms of B and C (spec/checkpoints section 4): gate first, then norm
    per head.
    """

    def __init__(self, config: BMojoConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.heads, self.kv_heads = config.mamba2_num_heads, config.mamba2_num_kv_heads  # H, G
        self.head_dim, self.state_size = config.mamba2_head_dim, config.mamba2_state_size  # P, N
        self.taps = config.mamba2_conv_size
        inner = self.heads * self.head_dim
        self.widths = [  # of x, B, C: all pass the convolution
            self.kv_heads * self.head_dim,
            self.kv_heads * self.state_size,
            self.heads * self.state_size,
        ]
        self.in_proj = nn.Linear(
            config.hidden_size, inner + sum(self.widths) + self.heads, bias=False
        )
        self.conv = CausalConv(sum(self.widths), self.taps, ops)
        self.b_norm = RMSNorm(self.state_size, 1e-6) if config.mamba2_qk_norm else nn.Identity()
        self.c_norm = RMSNorm(self.state_size, 1e-6) if config.mamba2_qk_norm else nn.Identity()
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        # What weight decay must spare is named as a bias or a norm: transformers goes by names.
        self.a_log_bias = nn.Parameter(torch.empty(self.heads))
        self.skip_bias = nn.Parameter(torch.empty(self.heads))  # D of the paper: y += D * x
        self.norm = nn.Parameter(torch.empty(self.heads, self.head_dim))
        self.out_proj = nn.Linear(inner, config.hidden_size, bias=False)

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
        batch = u.shape[0]
        inner = self.heads * self.head_dim
        z, xbc, dt = self.in_proj(u).split([inner, sum(self.widths), self.heads], dim=-1)
        x, b, c = xbc.split(self.widths, dim=-1)
        b = self.b_norm(b.unflatten(-1, (self.kv_heads, self.state_size))).flatten(-2)
        c = self.c_norm(c.unflatten(-1, (self.heads, self.state_size))).flatten(-2)
        xbc = torch.cat([x, b, c], dim=-1).to(u.dtype)  # as the state keeps it, autocast or not
        if isinstance(call, StepCall):
            tail, ssm = state["conv"], state["ssm"]
        else:
            tail = xbc.new_zeros(batch, self.taps - 1, xbc.shape[-1])
            size = (batch, self.heads, self.head_dim, self.state_size)
            ssm = u.new_zeros(size, dtype=recurrent_dtype(u.dtype))

        y, extended = self.conv(xbc, tail)
        x, b, c = y.split(self.widths, dim=-1)
        repeat = self.heads // self.kv_heads
        x = x.unflatten(-1, (self.kv_heads, self.head_dim)).repeat_interleave(
            repeat, dim=2
        )  # (B, T, H, P)
        b = b.unflatten(-1, (self.kv_heads, self.state_size)).repeat_interleave(
            repeat, dim=2
        )  # (B, T, H, N)
        c = c.unflatten(-1, (self.heads, self.state_size))
        dt = softplus(dt.to(ssm.dtype) + self.dt_bias)  # (B, T, H)
        if call.valid is not None:
            dt = dt * call.valid.unsqueeze(-1)  # dt = 0: the token leaves the state as it is
        y, ssm = self.ops.ssd_scan(x, dt, -self.a_log_bias.to(ssm.dtype).exp(), b, c, ssm)
        y = y + x * self.skip_bias.unsqueeze(-1)
        y = y * silu(z.unflatten(-1, (self.heads, self.head_dim)))
        y = nn.functional.rms_norm(y, (self.head_dim,), eps=1e-5) * self.norm
        f = self.out_proj(y.flatten(-2).to(u.dtype))
        if isinstance(call, StepCall):
            return f, {"conv": call.tail(extended, self.taps - 1), "ssm": ssm}
        return f, {}
