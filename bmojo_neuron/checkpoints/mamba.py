"""Mamba, as transformers writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import MambaConfig

from bmojo_neuron.checkpoints import backbone
from bmojo_neuron.checkpoints.parsing import parse
from bmojo_neuron.configuration import BMojoConfig

ALIASES = backbone.ALIASES
MODEL_TYPE: str = "mamba"
SIZES = (
    *("hidden_size", "expand", "intermediate_size", "state_size", "time_step_rank"),
    "conv_kernel",
)


def read_config(given: Mapping[str, Any]) -> BMojoConfig:
    """The model that a config.json describes.

    Raises:
        ValueError: a key cannot be honoured; the message names it, what was expected and what came.
    """
    theirs = parse(given, MambaConfig, SIZES, backbone.WITHOUT_EFFECT)
    return backbone.config_of(
        theirs,
        "mamba",
        mixer="mamba",
        mamba_inner_size=theirs.intermediate_size,
        mamba_state_size=theirs.state_size,
        mamba_dt_rank=theirs.time_step_rank,
        mamba_conv_size=theirs.conv_kernel,
        mamba_conv_bias=theirs.use_conv_bias,
        mamba_proj_bias=theirs.use_bias,
    )


def names(config: BMojoConfig) -> dict[str, str]:
    """Our tensors' names and theirs, each once; a tied `lm_head` is absent on both sides."""
    own = {
        "x_proj.weight": "x_proj.weight",
        "dt_weight": "dt_proj.weight",
        "dt_bias": "dt_proj.bias",
    }
    return backbone.names(config, config.mamba_conv_bias, config.mamba_proj_bias, own)
