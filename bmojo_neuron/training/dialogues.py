"""Recall dialogues: notes (name -> value) and questions about them, spread in filler text; and the
copy warm-up, without which only words that were values in training are ever answered.

The distance of an answer is counted in tokens between the start of its question and the end of what
told the value last: a note, a correction or an earlier answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bmojo_neuron.training.forms import (
    CORRECTIONS,
    NAME,
    NOTES,
    QUESTIONS,
    VALUE,
    Form,
    draw_form,
)
from bmojo_neuron.training.words import UNKNOWN, Words

NEVER = np.iinfo(np.int32).max
EVENT_LENGTH = 9  # tokens of a note or a question, about


@dataclass(frozen=True)
class Dialogue:
    """One sequence, and what is to be recalled in it.

    Attributes:
        tokens: (T,) int32.
        is_answer: (T,) bool, tokens that follow from a note: a recalled value and the full stop
            behind it.
        is_value: (T,) bool, tokens of the values in notes, which memory has to hold.
    """

    tokens: NDArray[np.int32]
    is_answer: NDArray[np.bool_]
    is_value: NDArray[np.bool_]


class Filler:
    """A text as tokens, cut where a line begins.

    Args:
        tokenizer: any.
        documents: the text, each with its newlines.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]) -> None:
        encoded = tokenizer(list(documents), add_special_tokens=False)["input_ids"]
        self.tokens = np.concatenate([np.asarray(ids, np.int32) for ids in encoded])
        pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        newline = np.array([piece.endswith("Ċ") for piece in pieces])  # as byte-level BPE writes it
        ends = np.flatnonzero(newline[self.tokens]) + 1
        self.starts = np.concatenate([[0], ends[:-1]])
        self.ends = ends
        self.mean_line = float((self.ends - self.starts).mean())

    @property
    def text(self) -> Tensor:
        """(T,) int64, all of it."""
        return torch.from_numpy(self.tokens).long()

    def line(self, index: int) -> NDArray[np.int32]:
        """The tokens of one line, its newline included; after the last comes the first."""
        index %= len(self.starts)
        return self.tokens[self.starts[index] : self.ends[index]]

    def stretch(self, rng: np.random.Generator, length: int) -> NDArray[np.int32]:
        """(length,) consecutive tokens from the start of a line; what is longer than the text goes
        on with its beginning.
        """
        starts = self.starts[self.starts + length <= len(self.tokens)]
        starts = starts if len(starts) else self.starts
        start = starts[rng.integers(len(starts))]
        return self.tokens.take(np.arange(start, start + length), mode="wrap")


def draw_text(rng: np.random.Generator, texts: Mapping[str, tuple[Filler, float]]) -> Filler:
    """One of the texts, by how often each is taken."""
    weights = np.array([weight for _, weight in texts.values()])
    kind = rng.choice(len(weights), p=weights / weights.sum())
    return list(texts.values())[kind][0]


class DialogueSource:
    """What dialogues are made of, as token ids.

    Args:
        tokenizer: with bos token and one token each for newlines and UNKNOWN.
        words: of names and values.
        fillers: texts and how often each is taken, by kind.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        words: Words,
        fillers: Mapping[str, tuple[Filler, float]],
    ) -> None:
        self.tokenizer, self.words, self.fillers = tokenizer, words, fillers
        self._pieces: dict[str, NDArray[np.int32]] = {}
        assert tokenizer.bos_token_id is not None
        self.bos = int(tokenizer.bos_token_id)

    def ids(self, piece: str) -> NDArray[np.int32]:
        """Token ids of a piece of text that the tokenizer's splitter borders on both sides."""
        if piece not in self._pieces:
            encoded = self.tokenizer.encode(piece, add_special_tokens=False)
            if len(self._pieces) > 200_000:
                self._pieces.clear()
            self._pieces[piece] = np.asarray(encoded, np.int32)
        return self._pieces[piece]

    def say(self, form: Form, name: str, value: str, end: str = "\n") -> Said:
        """A note or a question with its answer, as tokens."""
        pieces, places = [], []
        words = {NAME: f" {name}", VALUE: f" {value}"}
        for piece in (*form, end):
            ids = self.ids(words.get(piece, piece))
            pieces.append(ids)
            places.append(np.full(len(ids), piece == VALUE))
        return Said(np.concatenate(pieces), np.concatenate(places))

    @cached_property
    def ordinary(self) -> NDArray[np.int32]:
        """Ids of all tokens but the special ones."""
        special = set(self.tokenizer.all_special_ids)
        return np.array([i for i in range(len(self.tokenizer)) if i not in special], np.int32)


@dataclass(frozen=True)
class Said:
    """tokens (n,) int32, and is_value (n,) bool: which of them are the value."""

    tokens: NDArray[np.int32]
    is_value: NDArray[np.bool_]


class _Sheet:
    """A sequence in the making."""

    def __init__(self, length: int, bos: int) -> None:
        self.length, self.at = length, 1
        self.tokens = np.full(length, bos, np.int32)
        self.is_answer, self.is_value = np.zeros((2, length), bool)

    def write(self, tokens: NDArray[np.int32]) -> slice:
        """Put what still fits at the end; returns where."""
        where = slice(self.at, min(self.at + len(tokens), self.length))
        self.tokens[where] = tokens[: where.stop - where.start]
        self.at = where.stop
        return where

    def dialogue(self) -> Dialogue:
        return Dialogue(self.tokens, self.is_answer, self.is_value)


def sample_dialogue(
    rng: np.random.Generator,
    source: DialogueSource,
    *,
    length: int,
    notes: int,
    filler: float = 0.0,
    min_distance: int = 1,
    changed: float = 0.1,
    untold: float = 0.0,
) -> Dialogue:
    """A dialogue that starts with the bos token and asks as often as the filler leaves room for.

    With `filler` 0 the notes stand back to back, then the questions. With more, the notes arrive at
    random over the first `filler` of the sequence. A name is asked again and again: each time it is
    told or answered it draws a distance, log-uniformly up to `length`, and whichever name is due
    first is asked next. A told name may be corrected, after a distance drawn alike.

    Args:
        length: tokens of the dialogue; what stands at its end may be cut.
        notes: names told, at least 1.
        filler: expected share of filler tokens, 0 <= filler < 1; more where no name is due.
        min_distance: least distance of a question.
        changed: chance that what was told will be corrected, each time that it is told.
        untold: share of the questions that ask for a name which was not told; the answer is
            UNKNOWN.

    Raises:
        ValueError: `notes` or `filler` out of range.
    """
    if notes < 1:
        raise ValueError(f"notes: expected at least 1, got {notes}")
    if not 0 <= filler < 1:
        raise ValueError(f"filler: expected 0 <= filler < 1, got {filler}")
    names: list[str] = []
    while len(names) < notes:
        name = source.words.name(rng)
        if name not in names:
            names.append(name)
    values = [source.words.value(rng) for _ in names]
    arrival = np.sort(rng.random(notes)) * filler * length
    corrected = np.full(notes, float(NEVER))  # position from which the name is corrected
    due = np.full(notes, float(NEVER))  # position from which it is asked
    sheet = _Sheet(length, source.bos)
    text = draw_text(rng, source.fillers)
    line = int(rng.integers(len(text.starts)))
    share = filler / text.mean_line
    chance = share / (share + (1 - filler) / EVENT_LENGTH)
    told = 0

    def later() -> float:
        return sheet.at + min_distance * float((length / min_distance) ** rng.random())

    def end() -> str:
        return "\n" if rng.random() < 0.85 else "\n\n"

    def tell(row: int, form: Form) -> None:
        said = source.say(form, names[row], values[row], end())
        where = sheet.write(said.tokens)
        sheet.is_value[where] = said.is_value[: where.stop - where.start]
        due[row] = later()
        corrected[row] = later() if rng.random() < changed else NEVER

    def ask(name: str, value: str) -> None:
        said = source.say(draw_form(rng, QUESTIONS), name, value, end())
        where = sheet.write(said.tokens)
        answer = said.is_value | np.roll(said.is_value, 1)  # and the full stop
        sheet.is_answer[where] = answer[: where.stop - where.start]

    while sheet.at < length:
        if rng.random() >= chance:
            changing = int(corrected.argmin())
            asking = int(due.argmin())
            if told < notes and arrival[told] <= sheet.at:
                tell(told, draw_form(rng, NOTES))
                told += 1
                continue
            if corrected[changing] <= sheet.at:
                values[changing] = source.words.value(rng)
                tell(changing, draw_form(rng, CORRECTIONS))
                continue
            if due[asking] <= sheet.at or (filler == 0 and due[asking] < NEVER):
                if rng.random() < untold:
                    name = source.words.name(rng)
                    if name not in names:
                        ask(name, UNKNOWN)
                    continue
                ask(names[asking], values[asking])
                due[asking] = later()
                continue
        sheet.write(text.line(line))
        line += 1
    return sheet.dialogue()


def sample_copies(rng: np.random.Generator, source: DialogueSource, length: int) -> Dialogue:
    """The copy warm-up: segments of 4 to 23 tokens, uniform over all ordinary ones, which come
    again, each within the next few; what comes again is an answer, but for its first tokens.
    """
    sheet = _Sheet(length, source.bos)
    recent: list[NDArray[np.int32]] = []
    while sheet.at < length:
        if recent and rng.random() < 0.6:
            segment = recent[rng.integers(len(recent))]
            where = sheet.write(segment)
            sheet.is_answer[where] = np.arange(where.stop - where.start) >= 2
        else:
            segment = rng.choice(source.ordinary, rng.integers(4, 24))
            sheet.write(segment)
            recent = [*recent[-3:], segment]
    return sheet.dialogue()
