"""What Gated DeltaNet and Gated KalmaNet share: short convolutions before the recurrence, a gated
norm after it.

Letters: B batch, T tokens, d hidden size, H heads, G heads of k and v before expansion, D head dim,
E channels of one convolution, K taps.
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


class GatedMixer(nn.Module):
    """Projections, convolutions, decay, and the way out; a subclass has the recurrence.

    Args:
        taps: K.
        convolved: which of q, k and v pass a convolution and silu.
        conv_bias: whether their convolutions have a bias.
        gate: whether the output is gated.
        eps: of the output's norm.
    """

    def __init__(
        self,
        config: BMojoConfig,
        ops: Ops,
        *,
        taps: int,
        convolved: str,
        conv_bias: bool,
        gate: bool,
        eps: float,
    ) -> None:
        super().__init__()
        self.ops, self.taps, self.convolved = ops, taps, convolved
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads  # H, G
        self.head_dim, d = config.head_dim, config.hidden_size
        self.widths = {x: self._heads_of(x) * self.head_dim for x in "qkv"}
        for x, width in self.widths.items():
            self.add_module(f"{x}_proj", nn.Linear(d, width, bias=False))
            if x in convolved:
                self.add_module(f"{x}_conv", CausalConv(width, taps, conv_bias, ops))
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.a_log_bias = nn.Parameter(torch.empty(self.heads))
        self.g_proj = nn.Linear(d, self.widths["q"], bias=False) if gate else None
        self.o_norm = RMSNorm(self.head_dim, eps)
        self.o_proj = nn.Linear(self.widths["q"], d, bias=False)

    def _heads_of(self, x: str) -> int:
        return self.heads if x == "q" else self.kv_heads

    def reset(self) -> None:
        """dt log-uniform in [1e-3, 0.1], A in [0, 16]."""
        dt = torch.exp(torch.empty(self.heads).uniform_(math.log(1e-3), math.log(0.1)))
        init.copy_(self.dt_bias, dt + torch.log(-torch.expm1(-dt)))
        init.copy_(self.a_log_bias, torch.empty(self.heads).uniform_(1e-4, 16).log())

    def conv_parts(self, dtype: torch.dtype) -> list[StatePart]:
        """The last K-1 inputs of each convolution."""
        return [
            StatePart(f"conv_{x}", (self.taps - 1, self.widths[x]), dtype) for x in self.convolved
        ]

    def project(self, u: Tensor, call: Call, state: State) -> tuple[list[Tensor], State]:
        """q, k, v (B, T, H, D) in the recurrence's dtype, and the convolutions' new tails."""
        out, new = [], {}
        for x, width in self.widths.items():
            y = self.get_submodule(f"{x}_proj")(u).to(u.dtype)
            if x in self.convolved:
                tail = state.get(f"conv_{x}")
                if tail is None:
                    tail = y.new_zeros(y.shape[0], self.taps - 1, width)
                y, extended = self.get_submodule(f"{x}_conv")(y, tail)
                if isinstance(call, StepCall):
                    new[f"conv_{x}"] = call.tail(extended, self.taps - 1)
            elif self.activated(x):
                y = silu(y)
            y = y.unflatten(-1, (-1, self.head_dim)).to(recurrent_dtype(u.dtype))
            out.append(y.repeat_interleave(self.heads // self._heads_of(x), dim=2))
        return out, new

    def activated(self, x: str) -> bool:
        """Whether what passes no convolution passes silu."""
        return True

    def log_decay(self, a: Tensor, call: Call) -> Tensor:
        """g = -exp(A) softplus(a + dt) (B, T, H), 0 at padding; a from the token."""
        exact = recurrent_dtype(a.dtype)
        g = -self.a_log_bias.to(exact).exp() * softplus(a.to(exact) + self.dt_bias.to(exact))
        return g if call.valid is None else g * call.valid.unsqueeze(-1)

    def start(self, name: str, u: Tensor, state: State) -> Tensor:
        """A recurrent state (B, H, D, D), zeros before the first token."""
        size = (u.shape[0], self.heads, self.head_dim, self.head_dim)
        found = state.get(name)
        return u.new_zeros(size, dtype=recurrent_dtype(u.dtype)) if found is None else found

    def output(self, o: Tensor, u: Tensor) -> Tensor:
        """o (B, T, H, D) -> (B, T, d): norm first, then gate."""
        y = self.o_norm(o)
        if self.g_proj is not None:
            y = y * silu(self.g_proj(u).unflatten(-1, (self.heads, self.head_dim)).to(y.dtype))
        f: Tensor = self.o_proj(y.flatten(-2).to(u.dtype))
        return f
