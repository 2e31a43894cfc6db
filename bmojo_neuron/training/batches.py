"""What a step of training reads: text alone, or the next sequences of the dialogues under way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bmojo_neuron.state import State
from bmojo_neuron.training.dialogues import (
    DialogueSource,
    Filler,
    draw_text,
    sample_copies,
    sample_dialogue,
)
from bmojo_neuron.training.recipe import Stage


@dataclass(frozen=True)
class Batch:
    """tokens (B, T) int64; answers and values (B, T) bool, see `dialogues.Dialogue`."""

    tokens: Tensor
    answers: Tensor
    values: Tensor

    def columns(self, start: int, stop: int) -> Batch:
        """The tokens from `start` to `stop` of every row."""
        return Batch(
            self.tokens[:, start:stop], self.answers[:, start:stop], self.values[:, start:stop]
        )


class Dialogues:
    """Dialogues of a stage, read a sequence at a time; the model's state goes on with them, its
    gradient does not.

    Args:
        source: what they are made of.
        stage: of which kind they are.
        seed: the same one gives the same dialogues.
        begun: the step of the run at which they begin.
        read: sequences read so far.
        state: behind these; None before the first.
    """

    def __init__(
        self,
        source: DialogueSource,
        stage: Stage,
        seed: int,
        begun: int,
        read: int = 0,
        state: State | None = None,
    ) -> None:
        self.stage, self.begun, self.read, self.state = stage, begun, read, state
        rng = np.random.default_rng([seed, begun, 1])
        drawn = []
        length = stage.length * stage.spans
        for _ in range(stage.batch):
            if rng.random() < stage.copies:
                drawn.append(sample_copies(rng, source, length))
                continue
            dialogue = sample_dialogue(
                rng,
                source,
                length=length,
                notes=int(rng.integers(stage.notes[0], stage.notes[1] + 1)),
                filler=rng.uniform(*stage.filler),
                changed=stage.changed,
                untold=stage.untold,
                again=stage.again,
            )
            drawn.append(dialogue)
        self.batch = Batch(
            torch.from_numpy(np.stack([one.tokens for one in drawn])).long(),
            torch.from_numpy(np.stack([one.is_answer for one in drawn])),
            torch.from_numpy(np.stack([one.is_value for one in drawn])),
        )

    @property
    def sequences(self) -> Batch:
        """The next ones."""
        start = self.read * self.stage.length
        return self.batch.columns(start, start + self.stage.length)

    def go_on(self, state: State | None) -> None:
        """The next sequences are read, and the model's state is this now."""
        self.read += 1
        self.state = None if state is None else {name: x.detach() for name, x in state.items()}

    @property
    def through(self) -> bool:
        """Whether all is read."""
        return self.read == self.stage.spans


def draw_texts(
    rng: np.random.Generator,
    texts: Mapping[str, tuple[Filler, float]],
    rows: int,
    length: int,
    bos: int,
) -> Tensor:
    """Text alone, (rows, length) int64; bos comes first."""
    drawn = []
    for _ in range(rows):
        text = draw_text(rng, texts)
        start = rng.integers(len(text.tokens) - length)
        row = text.tokens[start : start + length].copy()
        row[0] = bos
        drawn.append(row)
    return torch.from_numpy(np.stack(drawn)).long()
