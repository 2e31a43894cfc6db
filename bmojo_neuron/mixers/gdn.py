"""Gated DeltaNet (Yang et al. 2024), as in spec/checkpoints section 4.

Letters: B batch, T tokens, d hidden size, H heads, D head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bmojo_neuron.configuration import BMojoConfig
from bmojo_neuron.mixers.gated import GatedMixer
from bmojo_neuron.ops import Ops
from bmojo_neuron.state import State, StatePart, recurrent_dtype
from bmojo_neuron.window import Call, StepCall


class GDN(GatedMixer):
    """A memory that corrects what it would have answered: the delta rule, with decay."""

    def __init__(self, config: BMojoConfig, ops: Ops) -> None:
        super().__init__(
            config,
            ops,
            taps=config.gdn_conv_size,
            convolved="qkv" if config.gdn_short_conv else "",
            conv_bias=config.gdn_conv_bias,
            gate=config.gdn_gate,
            eps=config.gdn_norm_eps,
        )
        self.strength = 2.0 if config.gdn_negative_eigenvalues else 1.0
        self.b_proj = nn.Linear(config.hidden_size, self.heads, bias=False)
        self.a_proj = nn.Linear(config.hidden_size, self.heads, bias=False)

    def parts(self, dtype: torch.dtype) -> list[StatePart]:
        """Tails of the convolutions; the memory, key by value, float32."""
        size = (self.heads, self.head_dim, self.head_dim)
        return [*self.conv_parts(dtype), StatePart("delta", size, recurrent_dtype(dtype))]

    def forward(self, u: Tensor, call: Call, state: State) -> tuple[Tensor, State]:
        """u (B, T, d) -> f (B, T, d) and the new state."""
        (q, k, v), new = self.project(u, call, state)
        q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (q, k))
        beta = self.strength * self.b_proj(u).to(v.dtype).sigmoid()
        if call.valid is not None:
            beta = beta * call.valid.unsqueeze(-1)  # no token: g = 0 and beta = 0
        g, memory = self.log_decay(self.a_proj(u), call), self.start("delta", u, state)
        o, memory = self.ops.delta_rule(q * self.head_dim**-0.5, k, v, g, beta, memory)
        f = self.output(o, u)
        return f, {**new, "delta": memory} if isinstance(call, StepCall) else {}
