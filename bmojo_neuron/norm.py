"""Root-mean-square norm and rotary embedding: the two pieces that every layer shares."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from bmojo_neuron.configuration import BMojoConfig


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, in x's dtype (autocast or not)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        return rms_norm(x.to(weight.dtype), weight.shape, weight, self.eps).to(x.dtype)


class Rotation(NamedTuple):
    """Rotary angles, broadcastable to (B, H, T, D): cos, and sin with its first half negated."""

    cos: Tensor
    sin: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Turn the pairs (x_i, x_{i + D/2}) of the last axis; the result has x's dtype."""
        return torch.addcmul(x * self.cos, x.roll(x.shape[-1] // 2, -1), self.sin).to(x.dtype)

    def inverse(self) -> Rotation:
        """The rotation back (exact for rope types that do not scale cos and sin)."""
        scale = self.cos.square() + self.sin.square()
        return Rotation(self.cos / scale, -self.sin / scale)


class Rotary:
    """Angles of rotary embedding for absolute positions, by transformers' `rope_parameters`.

    Where the frequencies follow the length of a text (`dynamic`, `longrope`), a token is turned by
    those of the text that ends with it, so that they depend on its position and not on how a text
    is cut into calls. transformers does the same within the original length, and beyond it when it
    gets one token at a time.

    The frequencies are derived, stay in float32 whatever the model's dtype, and are no part of it:
    no checkpoint holds them and no cast reaches them.
    """

    def __init__(self, config: BMojoConfig) -> None:
        self._parameters = config.rope_parameters
        self._type = self._parameters.get("rope_type", "default")
        self._inv_freq, self.scaling = _frequencies(config)
        self._long = self._inv_freq  # longrope: those beyond the original length
        self._original = config.max_position_embeddings
        if self._type == "longrope":
            self._original = self._parameters["original_max_position_embeddings"]
            self._long = _frequencies(config, self._original + 1)[0]

    def __call__(self, position: Tensor, dtype: torch.dtype) -> Rotation:
        """Rotations for positions (B, T) int32: cos and sin (B, 1, T, D)."""
        if self._inv_freq.device != position.device:
            self._inv_freq = self._inv_freq.to(position.device)
            self._long = self._long.to(position.device)
        at = position.to(torch.float32)[:, None, :, None]
        angle = at * self._frequencies_of(at + 1)
        cos, sin = angle.cos() * self.scaling, angle.sin() * self.scaling
        return Rotation(
            torch.cat([cos, cos], dim=-1).to(dtype), torch.cat([-sin, sin], dim=-1).to(dtype)
        )

    def _frequencies_of(self, length: Tensor) -> Tensor:
        """Inverse frequencies for texts of length (B, 1, T, 1): broadcastable to (B, 1, T, D/2)."""
        if self._type == "longrope":
            return torch.where(length > self._original, self._long, self._inv_freq)
        if self._type != "dynamic":
            return self._inv_freq
        factor, size = self._parameters["factor"], 2 * len(self._inv_freq)
        stretch = (factor * length / self._original - (factor - 1)).clamp(min=1)  # of rope_theta
        pair = torch.arange(0, size, 2, dtype=torch.float32, device=length.device)
        frequencies: Tensor = self._inv_freq * stretch ** -(pair / max(size - 2, 1))
        return frequencies


def _frequencies(config: BMojoConfig, length: int | None = None) -> tuple[Tensor, float]:
    parameters: dict[str, Any] = config.rope_parameters
    if parameters.get("rope_type", "default") == "default":
        exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu")
        exponent = exponent / config.head_dim
        return parameters["rope_theta"] ** -exponent, 1.0
    init = ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
    with torch.device("cpu"):  # whatever the model is made on: "meta" has no numbers
        inv_freq, scaling = init(config, torch.device("cpu"), seq_len=length)
    return inv_freq, float(scaling)
