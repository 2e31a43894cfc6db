"""What transformers may hand to `forward`: what cannot be honoured is refused, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bmojo_neuron.cache import BMojoCache

LOSS_OPTIONS = ("num_items_in_batch", "ignore_index", "shift_labels")


def check_arguments(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    labels: Tensor | None,
    past_key_values: BMojoCache | None,
    logits_to_keep: int | Tensor,
    others: Mapping[str, Any],
) -> None:
    """Check the arguments of `BMojoForCausalLM.forward` against each other.

    Args:
        others: keyword arguments that `forward` does not name. Options of the loss pass, and so
            does what asks for nothing (None, False; for `return_dict`: True).

    Raises:
        ValueError: an argument has the wrong shape or type, or is none of this model's.
    """
    embeddings = others.get("inputs_embeds")
    if embeddings is not None:  # from `generate` without input_ids
        raise ValueError(
            "inputs_embeds: expected None, as this model reads token ids alone, got "
            f"{tuple(embeddings.shape)}; pass input_ids"
        )
    shape = tuple(input_ids.shape)
    if input_ids.dim() != 2 or input_ids.shape[1] < 1:
        raise ValueError(f"input_ids: expected (batch, tokens >= 1), got shape {shape}")
    if past_key_values is not None and not isinstance(past_key_values, BMojoCache):
        raise ValueError(
            "past_key_values: expected a BMojoCache (as this model returns it), got "
            f"{type(past_key_values).__name__}; leave it out to start anew"
        )
    mask = attention_mask
    if mask is not None and (
        mask.dim() != 2 or mask.shape[1] < shape[1] or mask.shape[0] != shape[0]
    ):
        raise ValueError(
            f"attention_mask: expected (batch, tokens), 1 = valid, for input_ids {shape}, "
            f"got {tuple(mask.shape)}"
        )
    for name, targets in (("labels", labels), ("shift_labels", others.get("shift_labels"))):
        if targets is not None and targets.shape != input_ids.shape:
            raise ValueError(
                f"{name}: expected the shape of input_ids {shape}, got {tuple(targets.shape)}"
            )
    if labels is not None and (isinstance(logits_to_keep, Tensor) or logits_to_keep):
        raise ValueError(
            "logits_to_keep: expected 0 (all) with labels, which need every position, "
            f"got {logits_to_keep}"
        )
    for name, value in others.items():
        idle = value is None or value is (name == "return_dict")
        if not idle and name not in LOSS_OPTIONS:
            raise ValueError(f"{name}: this model's forward does not take it; leave it out")


def check_positions(position_ids: Tensor, mask: Tensor | None, seen: Tensor | int) -> None:
    """Positions follow from the tokens: those given must be the ones that the model counts itself.

    Args:
        position_ids: (B or 1, T); anything at padding.
        mask: (B, T), nonzero = valid; None = all valid.
        seen: tokens before this call, (B, 1) or 0.

    Raises:
        ValueError: a valid token is said to stand elsewhere, as in packed sequences.
    """
    if mask is None:
        own = seen + position_ids.new_ones(position_ids.shape[1]).cumsum(0) - 1
        wrong = position_ids != own
    else:
        own = seen + mask.bool().cumsum(1) - 1
        wrong = (position_ids != own) & mask.bool()
    if bool(wrong.any()):
        raise ValueError(
            "position_ids: expected the count of valid tokens before each one, which this model "
            "takes by itself, got other positions; leave them out (packed sequences become rows)"
        )
