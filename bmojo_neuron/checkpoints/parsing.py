"""A config.json of transformers, read as transformers reads it, and nothing in it overlooked."""

from __future__ import annotations

from collections.abc import Mapping, Set
from copy import deepcopy
from dataclasses import fields
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import GenerationConfig, PretrainedConfig

SILU = ("silu", "swish")
OLD = {"torch_dtype", "rope_theta", "rope_scaling"}  # what transformers wrote before version 5
WITHOUT_EFFECT = {  # notes of tools, and what no forward pass reads
    *("model_type", "_name_or_path", "name_or_path", "_commit_hash", "_attn_implementation"),
    *("attn_implementation", "output_attentions", "num_labels", "tokenizer_class"),
    *("_from_model_config", "_attn_implementation_autoset", "attn_implementation_autoset"),
    *("unsloth_fixed", "unsloth_version", "model_max_length", "max_sequence_length"),
    *("tokenizer_padding_side", "tokenizer_model_max_length", "transformers.js_config"),
}


def parse(
    given: Mapping[str, Any],
    kind: type[PretrainedConfig],
    sizes: tuple[str, ...],
    without_effect: Set[str] = frozenset(),
) -> Any:
    """A config.json as transformers itself reads it: defaults filled in, old keys folded in.

    Args:
        given: the config.json.
        kind: the family's class.
        sizes: keys that must be at least 1.
        without_effect: keys beyond `kind`'s own that do not change what transformers computes.

    Raises:
        ValueError: a key has the wrong type, is unknown or asks for what the model cannot do; the
            message names the key, what was expected and what came.
    """
    known = {f.name for f in fields(kind)} | OLD | WITHOUT_EFFECT | without_effect
    known |= set(GenerationConfig._get_default_generation_params())  # written there by old versions
    named = given.get("model_type", kind.model_type)
    require(named == kind.model_type, "model_type", kind.model_type, named)
    for key, value in given.items():
        if key not in known and value not in (None, False, {}, []):
            raise ValueError(
                f"{key}: expected a key of a {kind.model_type} configuration, got an unknown one "
                f"({value!r}); if it does not change what the model computes, remove it"
            )
    try:
        theirs: Any = kind(**deepcopy(dict(given)))
    except (
        *(StrictDataclassError, LookupError, TypeError, AttributeError),
        *(ArithmeticError, ValueError),
    ) as error:
        reason = error.__cause__ or error
        raise ValueError(f"config.json of a {kind.model_type} model: {reason}") from error
    for name in sizes:
        size = getattr(theirs, name)
        require(type(size) is int and size >= 1, name, "an integer of at least 1", size)
    require(theirs.hidden_act in SILU, "hidden_act", " or ".join(SILU), theirs.hidden_act)
    return theirs


def require(ok: bool, name: str, expected: str, got: object) -> None:
    """Raise ValueError about a key of a config.json, or of what transformers made of it."""
    if not ok:
        raise ValueError(f"{name}: expected {expected}, got {got!r}")
