"""Names and values of notes: any word. A fixed rule keeps a tenth of all words out of notes.

What stands in no note can still stand in the text and in the copy warm-up, which reads every token;
so a word that is kept out is one that the model knows how to write and was never asked to recall.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files

import numpy as np

from bmojo_neuron.training.corpus import Text

UNKNOWN = "unknown"  # the answer to a name that was never told
KEPT_OUT = 0.1  # share of the words that no note of training holds
_SOUNDS = ((*"bcdfghlmnprstvwz", "br", "gl", "st", "tr"), tuple("aeiou"))


@cache
def read_words(name: str) -> tuple[str, ...]:
    """The words of `names` or `values`, in order."""
    text = files(__package__).joinpath(f"{name}.txt").read_text(encoding="utf-8")
    return tuple(text.split())


def whole_words() -> list[str]:
    """All words that the tokenizer must hold as one token each."""
    return [UNKNOWN, *(word for name in ("names", "values") for word in read_words(name))]


def is_kept_out(word: str) -> bool:
    """The rule, whatever the word's case."""
    return zlib.crc32(word.lower().encode()) % 1000 < 1000 * KEPT_OUT


class Words:
    """Where names and values are drawn from: lists, the training text, made-up words, numbers.

    Args:
        corpus: texts by kind; words of their training documents are used.
    """

    def __init__(self, corpus: Mapping[str, Text]) -> None:
        found: set[str] = set()
        for text in corpus.values():
            for document in text.train:
                found.update(re.findall(r"(?<![\w'’])[a-z]{3,12}(?![\w'’])", document))
        self._text = tuple(sorted(found))

    def name(self, rng: np.random.Generator, kept_out: bool = False) -> str:
        """A name: one word, first and last name, `the X`, `my X` or `X's Y`.

        Args:
            kept_out: whether all its words (but for `the` and `my`) are kept out of notes; else
                none is.
        """

        def word() -> str:
            kind = rng.random()
            if kind < 0.5:
                return self._drawn(rng, _listed("names"), kept_out)
            return self._drawn(rng, self._open, kept_out, capital=rng.random() < 0.7)

        shape = rng.random()
        if shape < 0.8:
            return word()
        if shape < 0.87:
            return f"{word()} {word()}"
        if shape < 0.94:
            return f"{rng.choice(['the', 'my'])} {self._drawn(rng, self._open, kept_out)}"
        return f"{self._drawn(rng, _listed('names'), kept_out)}'s {self._common(rng, kept_out)}"

    def value(self, rng: np.random.Generator, kept_out: bool = False) -> str:
        """A value: one word, two, or a number; `kept_out` as for `name`."""
        shape = rng.random()
        if shape < 0.4:
            return self._common(rng, kept_out)
        if shape < 0.8:
            return self._drawn(rng, self._open, kept_out, capital=rng.random() < 0.3)
        if shape < 0.92:
            return self._drawn(rng, _number, kept_out)
        return f"{self._common(rng, kept_out)} {self._common(rng, kept_out)}"

    def _open(self, rng: np.random.Generator) -> str:
        if rng.random() < 0.7:
            return str(self._text[rng.integers(len(self._text))])
        return _made_up(rng)

    def _common(self, rng: np.random.Generator, kept_out: bool) -> str:
        return self._drawn(rng, _listed("values"), kept_out)

    def _drawn(
        self,
        rng: np.random.Generator,
        source: Callable[[np.random.Generator], str],
        kept_out: bool,
        capital: bool = False,
    ) -> str:
        while True:
            word = source(rng)
            if word != UNKNOWN and is_kept_out(word) == kept_out:
                return word.capitalize() if capital else word


def _listed(name: str) -> Callable[[np.random.Generator], str]:
    words = read_words(name)
    return lambda rng: words[rng.integers(len(words))]


def _made_up(rng: np.random.Generator) -> str:
    """Two or three syllables."""
    onsets, vowels = _SOUNDS
    syllables = [rng.choice(onsets) + rng.choice(vowels) for _ in range(rng.integers(2, 4))]
    return "".join(syllables) + ("" if rng.random() < 0.5 else str(rng.choice(["n", "r", "s"])))


def _number(rng: np.random.Generator) -> str:
    """One to five digits."""
    return str(rng.integers(10 ** rng.integers(1, 6)))
