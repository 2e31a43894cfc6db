"""How well a model recalls notes, by distance, and whether eidetic memory held them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bmojo_neuron.configuration import BMojoConfig
from bmojo_neuron.model import BMojoForCausalLM
from bmojo_neuron.training.dialogues import DialogueSource, Split, evaluation_dialogue


@dataclass(frozen=True)
class Recall:
    """Recall at one distance.

    Attributes:
        distance: tokens between a note's value and the answer.
        split: which pairs were asked, see `dialogues`.
        questions: how many.
        accuracy: share answered by the right value as the most likely token.
        held: share whose value token stood in some layer's eidetic memory when asked; NaN without such memory.
    """

    distance: int
    split: Split
    questions: int
    accuracy: float
    held: float


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
    """Feed `dialogues` dialogues of `notes` notes each as one batch and read the answers off the logits."""
    rng = np.random.default_rng([seed, distance])
    samples = [evaluation_dialogue(rng, source, distance=distance, notes=notes, split=split) for _ in range(dialogues)]
    tokens = torch.from_numpy(np.stack([sample.tokens for sample in samples]))
    asked = np.flatnonzero(samples[0].is_answer)  # all dialogues have the same plan
    state = model.new_state(dialogues)
    at, right, held = 0, 0, 0
    for answer in asked:
        logits, state = model.feed(tokens[:, at:answer], state, donate=True)
        right += int((logits.argmax(-1) == tokens[:, answer]).sum())
        sets = [part for name, part in state.items() if name.endswith("eidetic_position")]
        held += sum(int(((part == int(answer) - distance).any(1)).sum()) for part in sets[-1:])
        at = int(answer)
    questions = dialogues * len(asked)
    return Recall(distance, split, questions, right / questions, held / questions if sets else float("nan"))


def without_eidetic(model: BMojoForCausalLM) -> BMojoForCausalLM:
    """The same weights with eidetic memory switched off (M = 0)."""
    config = BMojoConfig.from_dict(model.config.to_dict() | {"eidetic_size": 0})
    off = BMojoForCausalLM(config).to(model.dtype).eval()
    weights = {name: tensor for name, tensor in model.state_dict().items() if ".eidetic." not in name}
    off.load_state_dict(weights)
    return off


@torch.no_grad()
def perplexity(model: BMojoForCausalLM, tokens: torch.Tensor, length: int = 1024) -> float:
    """Perplexity of a text (T,) int64, in stretches of `length` tokens, each from an empty state."""
    rows = tokens[: len(tokens) // length * length].view(-1, length)
    losses = [model(row.unsqueeze(0), labels=row.unsqueeze(0), use_cache=False).loss for row in rows]
    return float(torch.stack(losses).mean().exp())
