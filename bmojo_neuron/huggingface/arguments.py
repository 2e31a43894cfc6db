"""What transformers may hand to `forward`: what cannot be honoured is refused, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bmojo_neuron.configuration import BMojoConfig
from bmojo_neuron.huggingface.cache import BMojoCache

LOSS_OPTIONS = ("num_items_in_batch", "ignore_index", "shift_labels")
PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")


def is_traced() -> bool:
    """Whether this call is recorded (exported, traced), so that no value can be looked at."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return tracing or torch.compiler.is_exporting()


def refuse(others: Mapping[str, Any], config: BMojoConfig, columns: range) -> None:
    """Refuse keyword arguments that `forward` does not name, unless they ask for nothing.

    Args:
        others: name -> value; None, False and, for `return_dict`, True ask for nothing; options
            of the loss, which transformers' heads hand to the base model too, are not its business.
        columns: of this call, counted from the first one that the cache has seen.

    Raises:
        ValueError: the name of the first that asks for something.
    """
    if others.get("output_attentions") or config.output_attentions:
        raise ValueError(
            "output_attentions: expected False (one softmax reads three memories, and no map of it "
            "is kept), got True; leave it out"
        )
    for name, value in others.items():
        if name in LOSS_OPTIONS:
            continue
        if name in PACKED and value is not None:
            raise ValueError(f"{name}: packed sequences are not supported; make them rows")
        if name == "cache_position" and value is not None:
            if is_traced() or value.tolist() == list(columns):
                continue
            raise ValueError(
                f"cache_position: expected the {len(columns)} columns from {columns.start} on, "
                f"which follow from the cache, got {value.tolist()}; leave it out"
            )
        if value is not None and value is not (name == "return_dict"):
            raise ValueError(f"{name}: this model's forward does not take it; leave it out")


def wants_hidden_states(asked: bool | None, config: BMojoConfig) -> bool:
    """What a call asks for, or else the configuration.

    Raises:
        ValueError: it asks for some of them by index.
    """
    wanted = config.output_hidden_states if asked is None else asked
    if not isinstance(wanted, bool):
        raise ValueError(f"output_hidden_states: expected True (all) or False, got {wanted!r}")
    return wanted


def check_inputs(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """The one of the two that was given: ids (B, T) or embeddings (B, T, d).

    Raises:
        ValueError: both or none were given, or the shape is another.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError(
            "input_ids, inputs_embeds: expected one of them, got "
            f"{'none' if input_ids is None else 'both'}"
        )
    name, dims, tokens = "input_ids", 2, input_ids
    if tokens is None:
        name, dims, tokens = "inputs_embeds", 3, inputs_embeds
    assert tokens is not None
    if tokens.dim() != dims or 0 in tokens.shape[:2]:
        shape = "(batch >= 1, tokens >= 1" + (")" if dims == 2 else ", hidden_size)")
        raise ValueError(f"{name}: expected {shape}, got shape {tuple(tokens.shape)}")
    if dims == 2 and tokens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name}: expected int32 or int64 token ids, got {tokens.dtype}")
    return tokens


def valid_tokens(mask: Tensor | None, tokens: Tensor, cache: BMojoCache | None) -> Tensor | None:
    """Which of this call's tokens are valid.

    Args:
        mask: (B, T) or (B, seen + T) of 0 and 1, or None.
        tokens: (B, T, ...).
        cache: what came before.

    Returns:
        (B, T) bool, or None when all are.

    Raises:
        ValueError: the mask has another shape or other values, or hides what the cache holds.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise ValueError(f"attention_mask: expected a tensor, got {type(mask).__name__}")
    batch, length = tokens.shape[:2]
    seen = 0 if cache is None else cache.seen
    if mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] not in (length, seen + length):
        wide = f"({batch}, {length})" + (f" or ({batch}, {seen + length})" if seen else "")
        raise ValueError(
            f"attention_mask: expected {wide}, for the new tokens or for all, got "
            f"{tuple(mask.shape)}"
        )
    valid = mask[:, -length:] != 0
    fresh = cache is None or cache.state is None
    if is_traced() or (torch.compiler.is_compiling() and fresh):
        return valid  # no value can be looked at
    if mask.dtype != torch.bool and bool(((mask != 0) & (mask != 1)).any()):
        raise ValueError(
            "attention_mask: expected 0 (padding) and 1 (valid), got other values; the segments of "
            "a packed sequence become rows of their own"
        )
    if cache is not None and cache.state is not None and mask.shape[1] > length:
        counted = (mask[:, :-length] != 0).sum(1)
        wrong = (counted != cache.state["n"]).nonzero().flatten().tolist()
        if wrong:
            raise ValueError(
                f"attention_mask: expected {cache.state['n'].tolist()} valid tokens before the new "
                f"ones, as the cache has read, got {counted.tolist()} (rows {wrong}); what was "
                "read cannot be hidden: start anew without a cache, or pass the new tokens' mask"
            )
    return None if bool(valid.all()) else valid


def check_labels(
    shape: Sequence[int],
    labels: Tensor | None,
    shift_labels: Tensor | None,
    logits_to_keep: int | Tensor,
) -> None:
    """Check what the loss is made of against the tokens' shape (B, T).

    Raises:
        ValueError: a shape is another, or logits that the loss needs are not wanted.
    """
    for name, targets in (("labels", labels), ("shift_labels", shift_labels)):
        if targets is not None and targets.shape != shape:
            raise ValueError(
                f"{name}: expected the shape of the tokens {tuple(shape)}, got "
                f"{tuple(targets.shape)}"
            )
    if labels is not None and (isinstance(logits_to_keep, Tensor) or logits_to_keep):
        raise ValueError(
            "logits_to_keep: expected 0 (all) with labels, which need every position, "
            f"got {logits_to_keep}"
        )


def check_positions(
    position_ids: Tensor, valid: Tensor | None, seen: Tensor | int, shape: Sequence[int]
) -> None:
    """Positions follow from the tokens: those given must be the ones that the model counts itself.

    Args:
        position_ids: (B or 1, T); anything at padding.
        shape: (B, T).
        valid: (B, T) bool; None = all valid.
        seen: tokens before this call, (B, 1) or 0.

    Raises:
        ValueError: a valid token is said to stand elsewhere, as in packed sequences.
    """
    if tuple(position_ids.shape) not in (tuple(shape), (1, shape[1])):
        raise ValueError(
            f"position_ids: expected shape {tuple(shape)}, got {tuple(position_ids.shape)}"
        )
    if torch.compiler.is_compiling() or is_traced():
        return  # no value can be looked at
    if valid is None:
        own = seen + position_ids.new_ones(position_ids.shape[1]).cumsum(0) - 1
        wrong = position_ids != own
    else:
        own = seen + valid.cumsum(1) - 1
        wrong = (position_ids != own) & valid
    if bool(wrong.any()):
        raise ValueError(
            "position_ids: expected the count of valid tokens before each one, which this model "
            "takes by itself, got other positions; leave them out (packed sequences become rows)"
        )
