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
        spans: sequences per dialogue. The state goes on from one to the next, the gradient does
            not; so what was told is asked for at far greater distances than are trained through,
            among all that memory has kept since.
        batch: sequences per step.
        notes: (fewest, most) names that are told or asked at a time.
        filler: (least, most) share of filler text.
        copies: share of sequences that are of the copy warm-up.
        changed: chance that what was told is corrected.
        untold: share of questions for a name that was never told.
        again: chance that an answered name is asked again; else another takes its place.
        text: share of steps that are text alone, in sequences of `Recipe.text_length`.
        text_weight: weight, in dialogues, of the mean loss of all other tokens against that of the
            answers. Names and values of notes cannot be foreseen, so most of that loss is noise as
            long as a sequence is mostly notes.
        selection: weight of the selection loss.
        until: what the answers' loss, averaged over some AVERAGED steps, has to reach here. The
            stage ends as soon as it does; if it never does, the run starts again with another seed.
        lr: a constant learning rate for a stage outside the cosine; None: what the cosine says.
    """

    tokens: int
    length: int
    batch: int
    notes: tuple[int, int]
    filler: tuple[float, float]
    spans: int = 1
    copies: float = 0.1
    changed: float = 0.4
    untold: float = 0.1
    again: float = 0.5
    text: float = 0.45
    text_weight: float = 0.2
    selection: float = 0.2
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
            to a hundredth, both over the steps of the stages without a rate of their own.
        text_length, dropout: of the steps that are text alone.
        text_kinds: how often each kind of text is taken for them.
        filler_kinds: how often each is filler of dialogues.
        text_loss_share: share of a dialogue's other positions whose loss is computed, drawn anew at
            each step. The head is a third of the work of a model this small, and answers are what
            is scarce.
        attempts: how many seeds are tried, from `seed` on, until a stage reaches its `until`; the
            last goes on regardless.
    """

    model: dict[str, Any]
    stages: tuple[Stage, ...]
    vocab_size: int = 4096
    peak_lr: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    text_length: int = 512
    dropout: float = 0.1
    text_kinds: dict[str, float] = field(
        default_factory=lambda: {
            "bible": 0.7,
            "prose": 0.12,
            "documentation": 0.08,
            "licences": 0.02,
            "code": 0.08,
        }
    )
    filler_kinds: dict[str, float] = field(
        default_factory=lambda: {
            "bible": 0.4,
            "prose": 0.2,
            "documentation": 0.2,
            "licences": 0.05,
            "code": 0.15,
        }
    )
    text_loss_share: float = 0.2
    seed: int = 7
    attempts: int = 4
    evaluate_every: int = 500
    windows: tuple[int, ...] = (0, 4, 16)  # distances of the recall that the log tells


# Tokens, rate and share of text of the stages that teach corrections, then of those that mix them
# with all else.
CORRECTED = ((900_000, 1e-3, 0.2), (500_000, 3e-4, 0.35), (250_000, 1e-4, 0.5))
MIXED = ((1_200_000, 6e-4), (500_000, 2e-4), (250_000, 5e-5))

RECIPES = {
    "default": Recipe(
        model={
            "hidden_size": 192,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "block_types": ["mamba2", "mamba2", "bmojo"],
            "window": 64,
            "eidetic_size": 256,
            "initializer_range": 0.05,
        },
        stages=(
            Stage(
                *(3_000_000, 64, 32, (2, 4), (0.0, 0.2)),
                copies=0.7,
                untold=0.0,
                text=0.0,
                selection=0.0,
                until=0.6,
                lr=4e-3,
            ),
            Stage(500_000, 128, 16, (1, 4), (0.0, 0.5)),
            Stage(900_000, 256, 8, (1, 8), (0.2, 0.8)),
            Stage(1_500_000, 512, 4, (1, 12), (0.3, 0.9), changed=0.5),
            Stage(
                *(3_000_000, 512, 4, (1, 16), (0.4, 0.9)),
                spans=8,
                changed=0.6,
                text=0.5,
                text_weight=0.4,
            ),
            Stage(
                *(4_194_304, 512, 4, (1, 32), (0.5, 0.92)),
                spans=32,
                changed=0.6,
                text=0.5,
                text_weight=0.4,
            ),
            *(
                Stage(
                    *(tokens, 256, 8, (1, 4), (0.0, 0.8)),
                    spans=4,
                    changed=0.9,
                    untold=0.2,
                    text=text,
                    text_weight=0.3,
                    lr=lr,
                )
                for tokens, lr, text in CORRECTED
            ),
            *(
                Stage(
                    *(tokens, 512, 4, (1, 8), (0.2, 0.9)),
                    spans=8,
                    changed=0.6,
                    untold=0.12,
                    text=0.35,
                    text_weight=0.3,
                    lr=lr,
                )
                for tokens, lr in MIXED
            ),
        ),
    ),
}
