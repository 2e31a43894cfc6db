"""Mistral, as transformers writes it: one sliding window for all layers, or none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import MistralConfig

from bmojo_neuron.checkpoints.decoder import config_of, names, parse_decoder
from bmojo_neuron.configuration import BMojoConfig

__all__ = ["MODEL_TYPE", "names", "read_config"]

MODEL_TYPE: str = "mistral"


def read_config(given: Mapping[str, Any]) -> BMojoConfig:
    """The model that a config.json describes.

    Raises:
        ValueError: a key cannot be honoured; the message names it, what was expected and what came.
    """
    theirs = parse_decoder(given, MistralConfig)
    slides = theirs.sliding_window is not None
    return config_of(theirs, sliding=[slides] * theirs.num_hidden_layers, qk_norm=False)
