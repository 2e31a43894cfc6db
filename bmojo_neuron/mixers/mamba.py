"""Mamba (Gu & Dao 2023), the selective state space model S6: a decay per channel and state.

Letters: B batch, T tokens, d hidden size, E channels, N state size, R rank of dt, K taps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu, softplus
from transformers import initialization as init

from bmojo_neuron.configuration import BMojoConfig
from bmojo_neuron.mixers.conv import CausalConv
from bmojo_neuron.ops import Ops
from bmojo_neuron.state import State, StatePart, recurrent_dtype
from bmojo_neuron.window import Call, StepCall


class Mamba(nn.Module):
    """Mamba: dt, B and C are read from x after its convolution, dt through a bottleneck."""

    def __init__(self, config: BMojoConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.channels, self.state_size = config.mamba_inner_size, config.mamba_state_size  # E, N
        self.rank, self.taps = config.mamba_dt_rank, config.mamba_conv_size  # R, K
        bias = config.mamba_proj_bias
        self.in_proj = nn.Linear(config.hidden_size, 2 * self.channels, bias=bias)
        self.conv = CausalConv(self.channels, self.taps, config.mamba_conv_bias, ops)
        self.x_proj = nn.Linear(self.channels, self.rank + 2 * self.state_size, bias=False)
        self.dt_weight = nn.Parameter(torch.empty(self.channels, self.rank))
        self.dt_bias = nn.Parameter(torch.empty(self.channels))
        # What weight decay must spare is named as a bias: transformers goes by names.
        self.a_log_bias = nn.Parameter(torch.empty(self.channels, self.state_size))
        self.skip_bias = nn.Parameter(torch.empty(self.channels))  # D of the paper: y += D * x
        self.out_proj = nn.Linear(self.channels, config.hidden_size, bias=bias)

    def reset(self) -> None:
        """Initial values that are not the usual normal ones: dt log-uniform in [1e-3, 0.1], its
        weight uniform within 1/sqrt(R), A 1 to N.
        """
        dt = torch.exp(torch.empty(self.channels).uniform_(math.log(1e-3), math.log(0.1)))
        init.copy_(self.dt_bias, dt + torch.log(-torch.expm1(-dt)))
        init.uniform_(self.dt_weight, -(self.rank**-0.5), self.rank**-0.5)
        a = torch.arange(1, self.state_size + 1, dtype=torch.float32)
        init.copy_(self.a_log_bias, a.log().expand(self.channels, -1))
        init.ones_(self.skip_bias)

    def parts(self, dtype: torch.dtype) -> list[StatePart]:
        """conv: the last K-1 inputs of the convolution; ssm: the recurrent state, float32."""
        return [
            StatePart("conv", (self.taps - 1, self.channels), dtype),
            StatePart("ssm", (self.channels, self.state_size), recurrent_dtype(dtype)),
        ]

    def forward(self, u: Tensor, call: Call, state: State) -> tuple[Tensor, State]:
        """u (B, T, d) -> f (B, T, d) and the new state."""
        batch = u.shape[0]
        x, z = self.in_proj(u).chunk(2, dim=-1)  # (B, T, E)
        x = x.to(u.dtype)  # as the state keeps it, autocast or not
        if isinstance(call, StepCall):
            tail, ssm = state["conv"], state["ssm"]
        else:
            tail = x.new_zeros(batch, self.taps - 1, self.channels)
            size = (batch, self.channels, self.state_size)
            ssm = u.new_zeros(size, dtype=recurrent_dtype(u.dtype))

        x, extended = self.conv(x, tail)
        low, b, c = self.x_proj(x).split([self.rank, self.state_size, self.state_size], dim=-1)
        dt = softplus(linear(low, self.dt_weight).to(ssm.dtype) + self.dt_bias)  # (B, T, E)
        if call.valid is not None:
            dt = dt * call.valid.unsqueeze(-1)  # dt = 0: the token leaves the state as it is
        y, ssm = self.ops.selective_scan(x, dt, -self.a_log_bias.to(ssm.dtype).exp(), b, c, ssm)
        y = (y + x * self.skip_bias) * silu(z)
        f = self.out_proj(y.to(u.dtype))
        if isinstance(call, StepCall):
            return f, {"conv": call.tail(extended, self.taps - 1), "ssm": ssm}
        return f, {}
