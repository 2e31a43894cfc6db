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
EVENT_LENGTH = 11  # tokens of a note or a question, about


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

    def say(self, form: Form, name: str, value: str) -> Said:
        """A note or a question with its answer, as tokens."""
        pieces, places = [], []
        words = {NAME: f" {name}", VALUE: f" {value}"}
        for piece in form:
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


@dataclass(eq=False)
class _Fact:
    """A name and its value, and from which positions on it is told (anew) and asked (again)."""

    name: str
    value: str
    tell: float
    ask: float = NEVER
    told: bool = False


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
    again: float = 1.0,
) -> Dialogue:
    """A dialogue that starts with the bos token and asks as often as the filler leaves room for.

    The first notes stand at the beginning or, in half of the dialogues, come at random over the
    first `filler` of the sequence. Each time that a name is told it draws a distance, log-uniformly
    up to what is left of the sequence, from which on it is asked; whichever is due first comes
    first. With `filler` 0 there is nothing to wait for: notes stand back to back, then questions.
    A told name may be corrected, after a distance drawn alike. An answered one is asked again, or
    makes room for another name, told after a distance drawn alike.

    Args:
        length: tokens of the dialogue; what stands at its end may be cut.
        notes: names that are told or asked at a time, at least 1.
        filler: expected share of filler tokens, 0 <= filler < 1; more where nothing is due.
        min_distance: least distance of a question.
        changed: chance that what was told will be corrected, each time that it is told.
        untold: share of the questions that ask for a name which was not told; the answer is
            UNKNOWN.
        again: chance that an answered name is asked again.

    Raises:
        ValueError: `notes` or `filler` out of range.
    """
    if notes < 1:
        raise ValueError(f"notes: expected at least 1, got {notes}")
    if not 0 <= filler < 1:
        raise ValueError(f"filler: expected 0 <= filler < 1, got {filler}")
    sheet = _Sheet(length, source.bos)
    text = draw_text(rng, source.fillers)
    line = int(rng.integers(len(text.starts)))
    share = filler / text.mean_line
    chance = share / (share + (1 - filler) / EVENT_LENGTH)
    taken: set[str] = set()  # names ever told

    def fresh(tell: float) -> _Fact:
        while (name := source.words.name(rng)) in taken:
            pass
        taken.add(name)
        return _Fact(name, source.words.value(rng), tell)

    def later() -> float:
        left = max(length - sheet.at, min_distance)
        return sheet.at + min_distance * float((left / min_distance) ** rng.random())

    def ends() -> tuple[str, ...]:
        return ("\n",) if rng.random() < 0.85 else ("\n", "\n")

    def tell(fact: _Fact) -> None:
        if fact.told:
            fact.value = source.words.value(rng)
        form = draw_form(rng, CORRECTIONS if fact.told else NOTES)
        said = source.say((*form, *ends()), fact.name, fact.value)
        where = sheet.write(said.tokens)
        sheet.is_value[where] = said.is_value[: where.stop - where.start]
        fact.told, fact.ask = True, later()
        fact.tell = later() if rng.random() < changed else NEVER

    def ask(name: str, value: str) -> None:
        said = source.say((*draw_form(rng, QUESTIONS), *ends()), name, value)
        where = sheet.write(said.tokens)
        answer = said.is_value | np.roll(said.is_value, 1)  # and the full stop
        sheet.is_answer[where] = answer[: where.stop - where.start]

    arrival = np.zeros(notes) if rng.random() < 0.5 else rng.random(notes) * filler * length
    facts = [fresh(tell) for tell in np.sort(arrival).tolist()]
    while sheet.at < length:
        if rng.random() >= chance:
            telling = min(facts, key=lambda fact: fact.tell)
            asking = min(facts, key=lambda fact: fact.ask)
            if telling.tell <= min(sheet.at, asking.ask):
                tell(telling)
                continue
            if asking.ask <= sheet.at or (filler == 0 and asking.ask < NEVER):
                if rng.random() < untold:
                    name = source.words.name(rng)
                    if name not in taken:
                        ask(name, UNKNOWN)
                    continue
                ask(asking.name, asking.value)
                if rng.random() < again:
                    asking.ask = later()
                else:
                    facts[facts.index(asking)] = fresh(later())
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
