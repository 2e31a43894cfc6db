"""Qwen3, as transformers writes it: queries and keys are normed, layers may have a window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Qwen3Config

from bmojo_neuron.checkpoints.decoder import config_of, names, parse_decoder
from bmojo_neuron.configuration import BMojoConfig

__all__ = ["MODEL_TYPE", "names", "read_config"]

MODEL_TYPE: str = "qwen3"
LAYER_TYPES = ("full_attention", "sliding_attention")


def read_config(given: Mapping[str, Any]) -> BMojoConfig:
    """The model that a config.json describes.

    Raises:
        ValueError: a key cannot be honoured; the message names it, what was expected and what came.
    """
    theirs = parse_decoder(given, Qwen3Config)
    types = theirs.layer_types
    if len(types) != theirs.num_hidden_layers or not set(types) <= set(LAYER_TYPES):
        raise ValueError(
            f"layer_types: expected num_hidden_layers ({theirs.num_hidden_layers}) entries of "
            f"{', '.join(LAYER_TYPES)}, got {types!r}"
        )
    return config_of(
        theirs,
        sliding=[kind == "sliding_attention" for kind in types],
        attention_bias=theirs.attention_bias,
    )
