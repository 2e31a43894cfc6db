"""Mamba-2, as transformers writes it: x has as many heads as there are, B and C have `n_groups`."""

from __future__ import annotations

from collections.abc import Mapping
from math import isinf
from typing import Any

from transformers import Mamba2Config

from bmojo_neuron.checkpoints import backbone
from bmojo_neuron.checkpoints.parsing import parse, require
from bmojo_neuron.configuration import BMojoConfig

ALIASES = backbone.ALIASES
MODEL_TYPE: str = "mamba2"
SIZES = ("hidden_size", "num_heads", "head_dim", "state_size", "n_groups", "conv_kernel")
ENDLESS = {"__float__": "Infinity"}  # what transformers writes for a number that JSON lacks


def read_config(given: Mapping[str, Any]) -> BMojoConfig:
    """The model that a config.json describes.

    Raises:
        ValueError: a key cannot be honoured; the message names it, what was expected and what came.
    """
    limit = given.get("time_step_limit")
    if isinstance(limit, list):
        given = {**given, "time_step_limit": [float("inf") if x == ENDLESS else x for x in limit]}
    theirs = parse(given, Mamba2Config, SIZES, backbone.WITHOUT_EFFECT)
    divides = theirs.num_heads % theirs.n_groups == 0
    require(divides, "n_groups", f"a divisor of num_heads ({theirs.num_heads})", theirs.n_groups)
    limit = theirs.time_step_limit
    ordered = len(limit) == 2 and 0 <= limit[0] < limit[1]
    require(ordered, "time_step_limit", "two numbers, 0 <= least < most", limit)
    return backbone.config_of(
        theirs,
        "mamba2",
        mamba2_num_heads=theirs.num_heads,
        mamba2_num_kv_heads=theirs.n_groups,
        mamba2_num_x_heads=theirs.num_heads,
        mamba2_num_c_heads=theirs.n_groups,
        mamba2_head_dim=theirs.head_dim,
        mamba2_state_size=theirs.state_size,
        mamba2_conv_size=theirs.conv_kernel,
        mamba2_conv_bias=theirs.use_conv_bias,
        mamba2_proj_bias=theirs.use_bias,
        mamba2_qk_norm=False,
        mamba2_dt_min=limit[0],
        mamba2_dt_max=None if isinf(limit[1]) else limit[1],
        mamba2_norm_groups=theirs.n_groups,
        mamba2_norm_eps=theirs.layer_norm_epsilon,
    )


def names(config: BMojoConfig) -> dict[str, str]:
    """Our tensors' names and theirs, each once; a tied `lm_head` is absent on both sides."""
    own = {"dt_bias": "dt_bias", "norm": "norm.weight"}
    return backbone.names(config, config.mamba2_conv_bias, config.mamba2_proj_bias, own)
