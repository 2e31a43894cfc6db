"""What the recipe's losses need besides the model: dropout, and the scores that select.

Letters: B batch, T tokens, M eidetic slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import softplus

from bmojo_neuron.causal_lm import BMojoForCausalLM
from bmojo_neuron.eidetic import EideticMemory

TEMPERATURE, MARGIN = 0.3, 0.3  # of the selection loss, in units of the score
FILLER_WEIGHT = 4.0  # of filler that is let in against values that are not
LEAST_RANK, SLACK = 8, 2  # the threshold stands at rank max(LEAST_RANK, SLACK * values)


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
def scores(model: BMojoForCausalLM) -> Iterator[list[Tensor]]:
    """The innovation scores (B, T) of each eidetic memory, of the full forms run meanwhile."""
    out: list[Tensor] = []

    def keep(memory: EideticMemory, args: tuple[Any, ...]) -> None:
        f = args[3]
        tail = f.new_zeros(f.shape[0], model.config.innovation_taps, f.shape[2])
        out.append(memory.score(f, tail, tail.new_ones(f.shape[0]))[0])

    memories = [m for m in model.modules() if isinstance(m, EideticMemory)]
    hooks = [memory.register_forward_pre_hook(keep) for memory in memories]
    try:
        yield out
    finally:
        for hook in hooks:
            hook.remove()


def selection_loss(score: Tensor, is_value: Tensor, slots: int) -> Tensor:
    """How far the values of notes are from being held by few slots, and filler from being left out.

    The threshold is the score at rank SLACK times the number of values of each row, as if memory
    had no more slots than that.

    Args:
        score: (B, T), with gradient.
        is_value: (B, T) bool.
        slots: M; the threshold's rank is at most this.

    Returns:
        A scalar; 0 where no row has values.
    """
    rows = is_value.any(1)
    if not rows.any():
        return score.new_zeros(())
    score, is_value = score[rows], is_value[rows]
    rank = (SLACK * is_value.sum(1)).clamp(min=LEAST_RANK, max=min(slots, score.shape[1])) - 1
    best = score.detach().sort(dim=1, descending=True).values
    above = score - best.gather(1, rank.unsqueeze(1))
    values = softplus((MARGIN - above) / TEMPERATURE)[is_value].mean()
    filler = softplus((MARGIN + above) / TEMPERATURE)[~is_value].mean()
    return values + FILLER_WEIGHT * filler
