"""Recipes: everything that made a model, so that one command makes it again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

AVERAGED = 50  # steps over which the answers' loss is averaged, with exponential weights


@dataclass(frozen=True)
class Stage:
    """A stretch of the curriculum with one kind of dialogue.

    Attributes:
        tokens: how many to train on, at most.
        length: tokens per sequence.
        batch: sequences per step.
        notes: (fewest, most) pairs stated per sequence.
        filler: (least, most) share of Bible text.
        min_distance: least distance of a question in tokens (drawn up to the sequence's length).
        pool: how many names and values are in use; None = all.
        text: share of sequences that are text alone.
        text_weight: weight of the mean loss of all other tokens against that of the answers. Names
            and values of notes cannot be foreseen, so most of that loss is noise as long as a
            sequence is mostly notes.
        until: what the answers' loss, averaged over some AVERAGED steps, has to reach here. The
            stage ends as soon as it does; if it never does, the run starts again with another seed.
            Whether reading emerges at all is a matter of luck, and all that follows needs it.
        lr: a constant learning rate for a stage behind the cosine; None: what the cosine says.
    """

    tokens: int
    length: int
    batch: int
    notes: tuple[int, int]
    filler: tuple[float, float]
    min_distance: int = 1
    pool: int | None = None
    text: float = 0.0
    text_weight: float = 1.0
    until: float | None = None
    lr: float | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps, at most."""
        return self.tokens // (self.batch * self.length)


@dataclass(frozen=True)
class Recipe:
    """Model, curriculum and optimiser settings.

    Attributes:
        model: keyword arguments of `BMojoConfig` (the vocabulary comes with the tokenizer).
        stages: the curriculum, in order.
        peak_lr, warmup: AdamW's learning rate after `warmup` steps, from where it falls on a cosine
            to a tenth at the end of the stages that have no rate of their own (a stage that ends
            early makes this shorter).
        text_loss_share: share of the non-answer positions whose loss is computed, drawn anew at
            each step. The head is a third of the work of a model this small, and answers are what
            is scarce.
        attempts: how many seeds are tried, from `seed` on, until a stage reaches its `until`; the
            last goes on regardless.
    """

    model: dict[str, Any]
    stages: tuple[Stage, ...]
    vocab_size: int = 4096
    peak_lr: float = 4e-3
    warmup: int = 100
    weight_decay: float = 0.05
    clip: float = 1.0
    text_loss_share: float = 0.15
    seed: int = 20240706
    attempts: int = 12
    evaluate_every: int = 400
    distances: tuple[int, ...] = field(default=(32, 128, 256, 512, 1024))


RECIPES = {
    "default": Recipe(
        model={
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "block_types": ["mamba2", "bmojo"],
            "window": 64,
            "eidetic_size": 256,
            "initializer_range": 0.06,
        },
        stages=(
            Stage(2_048_000, 64, 32, (2, 4), (0.0, 0.2), pool=16, text_weight=0.1, until=0.3),
            Stage(1_024_000, 64, 32, (2, 4), (0.0, 0.2), pool=64, text_weight=0.1, until=0.3),
            Stage(1_228_800, 128, 16, (4, 8), (0.0, 0.4), text_weight=0.1),
            Stage(2_457_600, 256, 16, (6, 16), (0.2, 0.7), text_weight=0.2),
            Stage(3_072_000, 512, 8, (8, 20), (0.3, 0.85), 16, text_weight=0.3),
            Stage(4_096_000, 1024, 4, (8, 24), (0.5, 0.93), 64, text=0.05, text_weight=0.5),
            Stage(2_048_000, 1536, 3, (4, 24), (0.6, 0.95), 64, text=0.1, text_weight=0.7),
            Stage(921_600, 3072, 2, (8, 32), (0.8, 0.97), 64, text_weight=0.3, lr=1e-3),
        ),
    ),
}
