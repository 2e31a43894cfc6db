"""Recipes: everything that made a model, so that one command makes it again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Stage:
    """A stretch of the curriculum with one kind of dialogue.

    Attributes:
        tokens: how many to train on.
        length: tokens per sequence.
        batch: sequences per step.
        notes: (fewest, most) pairs stated per sequence.
        filler: (least, most) share of Bible text.
        min_distance: least distance of a question in tokens (drawn up to the sequence's length).
        pool: how many names and values are in use; None = all.
        text: share of sequences that are text alone.
    """

    tokens: int
    length: int
    batch: int
    notes: tuple[int, int]
    filler: tuple[float, float]
    min_distance: int = 1
    pool: int | None = None
    text: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """Model, curriculum and optimiser settings.

    Attributes:
        model: keyword arguments of `BMojoConfig` (the vocabulary comes with the tokenizer).
        stages: the curriculum, in order.
        peak_lr, warmup: AdamW's learning rate after `warmup` steps, from where it falls on a cosine to a tenth.
        text_loss_share: share of the non-answer positions whose loss is computed, drawn anew at each step. The head
            is a third of the work of a model this small, and answers are what is scarce.
        answer_weight: weight of the mean loss of the answers against that of the text.
    """

    model: dict[str, Any]
    stages: tuple[Stage, ...]
    vocab_size: int = 4096
    peak_lr: float = 2e-3
    warmup: int = 200
    weight_decay: float = 0.05
    clip: float = 1.0
    text_loss_share: float = 0.25
    answer_weight: float = 1.0
    seed: int = 20240706
    evaluate_every: int = 500
    distances: tuple[int, ...] = field(default=(32, 128, 256, 512, 1024))


RECIPES = {
    "default": Recipe(
        model={
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "layer_types": ["mamba2", "bmojo"],
            "window": 64,
            "eidetic_size": 128,
        },
        stages=(
            Stage(3_000_000, 256, 32, notes=(8, 16), filler=(0.0, 0.3), pool=64),
            Stage(4_000_000, 512, 16, notes=(8, 24), filler=(0.2, 0.6)),
            Stage(12_000_000, 1024, 8, notes=(8, 32), filler=(0.3, 0.9), text=0.05),
            Stage(8_000_000, 1536, 6, notes=(4, 32), filler=(0.5, 0.95), text=0.1),
        ),
    ),
}
