"""What the recipe's losses need besides the model: dropout, and the scores that select.

Letters: B batch, T tokens, M eidetic slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import softplus

from bmojo_neuron.causal_lm import BMojoForCausalLM
from bmojo_neuron.eidetic import EideticMemory

# Of the selection loss, in units of the score: where values are told from filler, how clearly, and
# how softly. A threshold that follows the scores' rank instead drives filler's innovation to zero,
# and the fading memory with it.
THRESHOLD, MARGIN, TEMPERATURE = 1.0, 0.3, 0.3
FILLER_WEIGHT = 4.0  # of filler that is let in against values that are not


@contextmanager
def dropout(model: BMojoForCausalLM, share: float) -> Iterator[None]:
    """Drop so much of the embedding and of what each layer and each MLP adds, while this lasts."""

    def drop(_: nn.Module, __: Any, y: Any) -> Any:
        if isinstance(y, tuple):
            return nn.functional.dropout(y[0], share), *y[1:]
        return nn.functional.dropout(y, share)

    places: list[nn.Module] = [model.model.embed_tokens]
    for block in model.model.layers:
        places += [place for place in (block.layer, block.mlp) if isinstance(place, nn.Module)]
    hooks = [place.register_forward_hook(drop) for place in places]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def scores(model: BMojoForCausalLM) -> Iterator[list[list[Tensor]]]:
    """For each eidetic memory the innovation scores (B, T) of every call made meanwhile."""
    out: list[list[Tensor]] = []
    hooks = []
    for memory in model.modules():
        if isinstance(memory, EideticMemory):
            mine: list[Tensor] = []
            out.append(mine)
            hooks.append(memory.register_forward_pre_hook(partial(_keep_score, mine)))
    try:
        yield out
    finally:
        for hook in hooks:
            hook.remove()


def _keep_score(kept: list[Tensor], memory: nn.Module, args: tuple[Any, ...]) -> None:
    assert isinstance(memory, EideticMemory)
    f, state = args[3], args[5]
    tail = f.new_zeros(f.shape[0], memory.config.innovation_taps, f.shape[2])
    tail = state.get("predictor", tail)
    running = state.get("innovation", tail.new_ones(f.shape[0]))
    kept.append(memory.score(f, tail, running)[0])


def selection_loss(score: Tensor, is_value: Tensor) -> Tensor:
    """How far the values of notes are from standing out, and all else from not doing so.

    Args:
        score: (B, T), with gradient.
        is_value: (B, T) bool.

    Returns:
        A scalar; 0 where no row has values.
    """
    rows = is_value.any(1)
    if not rows.any():
        return score.new_zeros(())
    above, is_value = score[rows] - THRESHOLD, is_value[rows]
    values = softplus((MARGIN - above) / TEMPERATURE)[is_value].mean()
    others = softplus((MARGIN + above) / TEMPERATURE)[~is_value].mean()
    return values + FILLER_WEIGHT * others
