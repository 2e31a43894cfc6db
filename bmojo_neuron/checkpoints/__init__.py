"""The world's checkpoints: one file per family, which says what its configuration means and what
its tensors are called. Everything that reads or writes any of them follows from these two tables.

A family is a module with

    MODEL_TYPE                   as in its config.json
    read_config(given)           its config.json (a dict) -> BMojoConfig
    names(config)                our tensor name -> theirs, every tensor of ours once
    write_config(config)         BMojoConfig -> its config.json; only where it can be written

Tensors are renamed and reshaped, never computed with: there and back is the identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol, cast

from bmojo_neuron.configuration import BMojoConfig

# Model types; each is a module here.
FAMILIES = ("hybrid_qwen3", "mamba", "mamba2", "qwen3", "llama", "mistral")


class Family(Protocol):
    """See the docstring of this package."""

    MODEL_TYPE: str

    def read_config(self, given: Mapping[str, Any]) -> BMojoConfig:
        """The architecture that a config.json of this family describes."""

    def names(self, config: BMojoConfig) -> dict[str, str]:
        """Our tensor name -> theirs."""


def family_of(model_type: object) -> Family | None:
    """The family of a config.json's model_type, None if it is our own.

    Raises:
        ValueError: nothing here reads it.
    """
    if model_type == BMojoConfig.model_type:
        return None
    if model_type not in FAMILIES:
        known = ", ".join((BMojoConfig.model_type, *FAMILIES))
        raise ValueError(f"model_type: expected one of {known}, got {model_type!r}")
    return cast(Family, import_module(f"bmojo_neuron.checkpoints.{model_type}"))
