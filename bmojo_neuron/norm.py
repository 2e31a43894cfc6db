"""Root-mean-square norm and rotary embedding: the two pieces that every layer shares."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from bmojo_neuron.configuration import BMojoConfig


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight.shape, self.weight, self.eps)


class Rotation(NamedTuple):
    """cos and sin of rotary angles, each broadcastable to (B, H, T, D)."""

    cos: Tensor
    sin: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Turn the pairs (x_i, x_{i + D/2}) of the last axis."""
        half = x.shape[-1] // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
        return torch.addcmul(x * self.cos, turned, self.sin)

    def inverse(self) -> Rotation:
        """The rotation back (exact for rope types that do not scale cos and sin)."""
        scale = self.cos.square() + self.sin.square()
        return Rotation(self.cos / scale, -self.sin / scale)


class Rotary(nn.Module):
    """Angles of rotary embedding for absolute positions, in float32, by transformers' `rope_parameters`."""

    inv_freq: Tensor

    def __init__(self, config: BMojoConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("inv_freq", torch.empty(config.head_dim // 2), persistent=False)
        self.scaling = 1.0
        self.reset()

    def reset(self) -> None:
        """Compute the frequencies anew (they are derived, so no checkpoint holds them)."""
        inv_freq, self.scaling = _frequencies(self.config)
        with torch.no_grad():
            self.inv_freq.copy_(inv_freq)

    def forward(self, position: Tensor, dtype: torch.dtype) -> Rotation:
        """Rotations for positions (B, T) int32: cos and sin (B, 1, T, D)."""
        angle = position.to(self.inv_freq.dtype)[:, None, :, None] * self.inv_freq
        angle = torch.cat([angle, angle], dim=-1)
        return Rotation((angle.cos() * self.scaling).to(dtype), (angle.sin() * self.scaling).to(dtype))


def _frequencies(config: BMojoConfig) -> tuple[Tensor, float]:
    parameters: dict[str, Any] = config.rope_parameters
    if parameters.get("rope_type", "default") == "default":
        exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        return parameters["rope_theta"] ** -exponent, 1.0
    inv_freq, scaling = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"))
    return inv_freq, float(scaling)
