"""How well a model recalls notes, by distance, and whether eidetic memory held them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bmojo_neuron.causal_lm import BMojoForCausalLM
from bmojo_neuron.configuration import BMojoConfig
from bmojo_neuron.training.dialogues import DialogueSource, Split, evaluation_dialogue


@dataclass(frozen=True)
class Recall:
    """Recall at one distance.

    Attributes:
        distance: tokens between a note's value and the answer.
        split: which pairs were asked, see `dialogues`.
        eidetic: whether the model had eidetic memory.
        questions: how many.
        accuracy: share answered by the right value as the most likely token.
        held: share whose value token stood in some layer's eidetic memory when asked; None for a
            model without such memory.
    """

    distance: int
    split: Split
    eidetic: bool
    questions: int
    accuracy: float
    held: float | None


@torch.no_grad()
def measure(
    model: BMojoForCausalLM,
    source: DialogueSource,
    distance: int,
    split: Split,
    *,
    dialogues: int = 32,
    notes: int = 4,
    seed: int = 0,
) -> Recall:
    """Feed dialogues of `notes` notes each as one batch and read the answers off the logits.

    Each answer is followed by the right value, whatever the model would have said. The same seed
    gives the same dialogues to every model.
    """
    rng = np.random.default_rng([seed, distance])
    samples = [
        evaluation_dialogue(rng, source, distance=distance, notes=notes, split=split)
        for _ in range(dialogues)
    ]
    tokens = torch.from_numpy(np.stack([sample.tokens for sample in samples]))
    asked = np.flatnonzero(samples[0].is_answer).tolist()  # the same places in all dialogues
    state = model.new_state(dialogues)
    start, right, held = 0, 0, 0
    for place in asked:
        logits, state = model.feed(tokens[:, start:place], state, donate=True)
        right += int((logits.argmax(-1) == tokens[:, place]).sum())
        memories = [part for name, part in state.items() if name.endswith("eidetic_position")]
        if memories:
            held += int((torch.cat(memories, dim=1) == place - distance).any(dim=1).sum())
        start = place
    questions = dialogues * len(asked)
    eidetic: bool = model.config.has_eidetic
    share = held / questions if eidetic else None
    return Recall(distance, split, eidetic, questions, right / questions, share)


def measure_all(
    model: BMojoForCausalLM,
    source: DialogueSource,
    distances: Sequence[int],
    *,
    questions: int = 256,
    notes: int = 4,
) -> Iterator[Recall]:
    """Recall by distance, of known names and of held-out ones, with eidetic memory and without.

    Four results per distance (two, if the model has no such memory), each from `questions`
    questions, rounded up to whole dialogues.
    """
    models = [model, without_eidetic(model)] if model.config.has_eidetic else [model]
    splits: tuple[Split, ...] = ("heldout_pairs", "heldout_names")
    dialogues = -(-questions // notes)
    for distance in distances:
        for split in splits:
            for one in models:
                yield measure(one, source, distance, split, dialogues=dialogues, notes=notes)


def without_eidetic(model: BMojoForCausalLM) -> BMojoForCausalLM:
    """The same weights with eidetic memory switched off (M = 0), in evaluation mode."""
    config = BMojoConfig.from_dict(model.config.to_dict() | {"eidetic_size": 0})
    off = BMojoForCausalLM(config)
    nn.Module.to(off, model.device, model.dtype)
    weights = {
        name: tensor for name, tensor in model.state_dict().items() if ".eidetic." not in name
    }
    off.load_state_dict(weights)
    off.train(False)
    return off


@torch.no_grad()
def perplexity(model: BMojoForCausalLM, tokens: Tensor, length: int = 1024) -> float:
    """Perplexity of a text, in stretches of `length` tokens, each from an empty state.

    Args:
        model: in evaluation mode.
        tokens: (T,) int64, T >= length; what does not fill a last stretch is left out.
        length: of a stretch, at least 2; its first token is given, not predicted.
    """
    rows = tokens[: len(tokens) // length * length].view(-1, 1, length)
    losses = [model(row, labels=row, use_cache=False).loss for row in rows]
    return float(torch.stack(losses).mean().exp())
