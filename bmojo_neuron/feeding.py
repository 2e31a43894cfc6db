"""The host's loop over the two programs of a model: any number of tokens, select and step by plan.

Letters: B batch, T tokens, K what a program says of a token (d of a hidden state, V of logits).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from bmojo_neuron.configuration import BMojoConfig
from bmojo_neuron.planning import plan
from bmojo_neuron.state import State, StatePart, copy_state, grow

MOST_TOKENS = torch.iinfo(torch.int32).max  # of a session


class Programs(Protocol):
    """What `feed` needs of a model."""

    config: BMojoConfig

    @property
    def chunk(self) -> int:
        """Longest step."""

    def state_parts(self) -> list[StatePart]:
        """The registry: every tensor that a session keeps."""

    def select(self, state: State, at_boundary: Tensor) -> tuple[State, State]:
        """Merge the tokens about to leave the window into eidetic memory."""


def feed(
    programs: Programs,
    step: Callable[..., tuple[Tensor, State]],
    tokens: Tensor,
    state: State,
    lengths: Sequence[int] | None,
    all_tokens: bool,
    donate: bool,
) -> tuple[Tensor, State]:
    """Feed any number of tokens; see `BMojoForCausalLM.feed`, which says it for users.

    A call that fails midway leaves the old state as it was, donated or not. A single token may take
    the slot in a ring whose token has left every window. But at a boundary that token has still to
    be selected, and a second token would take the slot of one that is still seen.

    Args:
        programs: the model.
        step: its step, with its options but `donate`.
        tokens: (B, T) ids or (B, T, d) embeddings.
        all_tokens: `step` speaks of all its tokens.

    Returns:
        What `step` says of the last valid token (B, ...), or of all tokens (B, T, ...), zeros where
        there is none; and the new state.
    """
    rows = state["n"].shape[0]
    batch, width = tokens.shape[:2] if tokens.dim() in (2, 3) else (0, 0)
    if batch != rows or width < 1:
        raise ValueError(f"ids: expected ({rows}, T >= 1) token ids, got {tuple(tokens.shape)}")
    if tokens.dim() == 2 and tokens.dtype != torch.int32:
        tokens = tokens.clamp(max=MOST_TOKENS).to(torch.int32)  # what is no id stays none
    left = [width] * batch if lengths is None else list(lengths)
    if len(left) != batch or not all(0 <= length <= width for length in left):
        raise ValueError(f"lengths: expected {batch} values between 0 and {width}, got {left}")
    seen = state["n"].tolist()
    needed = max(s + length for s, length in zip(seen, left, strict=True))
    if needed > MOST_TOKENS:
        raise ValueError(
            f"ids: expected at most {MOST_TOKENS} tokens in a row, as positions are int32, "
            f"got {needed}; go on in a new state"
        )
    if not torch.is_inference_mode_enabled() and any(x.is_inference() for x in state.values()):
        state = copy_state(state)  # tensors of inference mode cannot be written outside it
    config = programs.config
    if "attention" in config.block_types:  # the only parts that grow
        state = grow(state, programs.state_parts(), max(1, needed))
    period = config.selection_period if config.has_eidetic else None
    done, result = [0] * batch, None
    private = False  # whether the state is this call's own
    for piece in plan(seen, left, period, programs.chunk):
        if any(piece.at_boundary):
            at_boundary = torch.tensor(piece.at_boundary, device=tokens.device)
            state, _ = programs.select(state, at_boundary)
        some, n_valid = _cut(tokens, done, piece.take)
        own = private or (max(left) == 1 and not any(piece.at_boundary))
        out, state = step(some, n_valid, state, donate=donate and own)
        private = private or not (donate and own)
        if result is None:
            shape = (batch, width, *out.shape[2:]) if all_tokens else out.shape
            result = out.new_zeros(shape)
        for b, take in enumerate(piece.take):
            if take and all_tokens:
                result[b, done[b] : done[b] + take] = out[b, :take]
            elif take:
                result[b] = out[b]
        done = [d + take for d, take in zip(done, piece.take, strict=True)]
    if result is None:  # nothing to feed: the programs still know the shape
        none = torch.zeros(batch, dtype=torch.int32, device=tokens.device)
        out, _ = step(tokens[:, :1], none, copy_state(state))
        result = out.new_zeros((batch, width, *out.shape[2:]) if all_tokens else out.shape)
    return result, state


def _cut(tokens: Tensor, done: list[int], take: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    """Each row's next tokens (B, T, ...), and how many of them are valid (None = all)."""
    if min(done) == max(done) and min(take) == max(take):
        return tokens[:, done[0] : done[0] + take[0]], None
    column = torch.arange(max(take), device=tokens.device)
    column = column + torch.tensor(done, device=tokens.device).unsqueeze(1)
    column = column.clamp(max=tokens.shape[1] - 1)
    row = torch.arange(len(done), device=tokens.device).unsqueeze(1)
    n_valid = torch.tensor(take, dtype=torch.int32, device=tokens.device)
    return tokens[row, column], n_valid
