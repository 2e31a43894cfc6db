"""Gated KalmaNet, as in spec/checkpoints section 4: a memory read by ridge regression.

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

EPS = 1e-6


class GKA(GatedMixer):
    """Keeps k k^T and k v^T, both with decay, and solves for each query; `gka_num_iter` steps of
    Chebyshev's iteration are part of the model.
    """

    def __init__(self, config: BMojoConfig, ops: Ops) -> None:
        super().__init__(
            config,
            ops,
            taps=config.gka_conv_size,
            convolved="qkv" if config.gka_v_conv else "qk",
            conv_bias=False,
            gate=config.gka_gate,
            eps=config.gka_norm_eps,
        )
        self.config = config
        d = config.hidden_size
        self.a_proj = nn.Linear(d, self.heads, bias=False)
        self.b_proj = nn.Linear(d, self.heads) if config.gka_beta_gate else None
        self.alpha_proj = nn.Linear(d, self.heads) if config.gka_alpha_connection else None

    def parts(self, dtype: torch.dtype) -> list[StatePart]:
        """Tails of the convolutions; k k^T and k v^T, float32."""
        size = (self.heads, self.head_dim, self.head_dim)
        exact = recurrent_dtype(dtype)
        return [*self.conv_parts(dtype), StatePart("kk", size, exact), StatePart("kv", size, exact)]

    def activated(self, x: str) -> bool:
        """A value without convolution passes as it is."""
        return False

    def forward(self, u: Tensor, call: Call, state: State) -> tuple[Tensor, State]:
        """u (B, T, d) -> f (B, T, d) and the new state."""
        c = self.config
        (q, k, v), new = self.project(u, call, state)
        q, k = (x / (x.norm(dim=-1, keepdim=True) + EPS) for x in (q, k))
        if self.b_proj is not None:
            beta = (self.b_proj(u).to(v.dtype).sigmoid() + EPS).unsqueeze(-1)
            k, v = k * beta, v * beta
        if call.valid is not None:
            valid = call.valid[..., None, None]
            k, v = k * valid, v * valid  # no token: g = 0, k = 0 and v = 0
        alpha = v.new_ones(v.shape[:3])
        if self.alpha_proj is not None:
            alpha = self.alpha_proj(u).to(v.dtype).sigmoid()
        g = self.log_decay(self.a_proj(u), call)
        none = torch.zeros_like(g)
        o, kk, kv = self.ops.kalman_scan(
            q,
            k,
            v,
            g if c.gka_forgetting_gate else none,
            g if c.gka_forgetting_gate and c.gka_forgetting_gate_kk else none,
            alpha,
            self.start("kk", u, state),
            self.start("kv", u, state),
            c.gka_ridge,
            c.gka_num_iter,
        )
        f = self.output(o * self.head_dim**-0.5 if c.gka_rescale else o, u)
        return f, {**new, "kk": kk, "kv": kv} if isinstance(call, StepCall) else {}
