"""The short convolution before a scan.

Letters: B batch, T tokens, E channels, K taps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import initialization as init

from bmojo_neuron.ops import Ops


class CausalConv(nn.Module):
    """The parameters of `ops.causal_conv`: weight (E, K), newest tap last; bias (E,) or None."""

    def __init__(self, channels: int, taps: int, bias: bool, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.weight = nn.Parameter(torch.empty(channels, taps))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def reset(self) -> None:
        """Weight uniform within 1/sqrt(K), as torch's own convolutions; bias 0."""
        bound = self.weight.shape[1] ** -0.5
        init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, x: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """See `bmojo_neuron.ops.causal_conv`."""
        return self.ops.causal_conv(x, self.weight, self.bias, tail)
