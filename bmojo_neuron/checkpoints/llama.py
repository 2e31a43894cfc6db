"""Llama, as transformers writes it: full attention without norms of queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import LlamaConfig

from bmojo_neuron.checkpoints.decoder import config_of, names, parse_decoder
from bmojo_neuron.configuration import BMojoConfig

__all__ = ["MODEL_TYPE", "names", "read_config"]

MODEL_TYPE: str = "llama"
# Of Mistral. transformers' Llama has no mask for it, though its cache is cut to it (5.23.0): with a
# cache it computes what without one it does not. The model is what its forward pass says.
WITHOUT_EFFECT = {"sliding_window"}


def read_config(given: Mapping[str, Any]) -> BMojoConfig:
    """The model that a config.json describes.

    Raises:
        ValueError: a key cannot be honoured; the message names it, what was expected and what came.
    """
    theirs = parse_decoder(given, LlamaConfig, WITHOUT_EFFECT)
    return config_of(
        theirs,
        sliding=[False] * theirs.num_hidden_layers,
        qk_norm=False,
        attention_bias=theirs.attention_bias,
        mlp_bias=theirs.mlp_bias,
    )
