"""How a note is told and asked for: a handful of phrasings, in any case.

    Note: Jane is silver.           Remember that Jane is silver.       Correction: Jane is gold.
    Question: Jane                  Question: what is Jane?             Q: Jane
    Answer: silver.                 Answer: silver.                     A: silver.

A form is a list of pieces; NAME and VALUE stand for the words, a blank included. The first of each
kind is the plain one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

NAME, VALUE = "{name}", "{value}"
Form = tuple[str, ...]
Drawn = TypeVar("Drawn")

NOTES: tuple[tuple[Form, float], ...] = (
    (("Note:", NAME, " is", VALUE, "."), 0.6),
    (("Note that", NAME, " is", VALUE, "."), 0.1),
    (("Remember:", NAME, " is", VALUE, "."), 0.1),
    (("Remember that", NAME, " is", VALUE, "."), 0.1),
    (("Please note:", NAME, " is", VALUE, "."), 0.1),
)
CORRECTIONS: tuple[tuple[Form, float], ...] = (
    *((form, 0.6 * weight) for form, weight in NOTES),
    (("Correction:", NAME, " is", VALUE, "."), 0.2),
    (("Note:", NAME, " is now", VALUE, "."), 0.2),
)
QUESTIONS: tuple[tuple[Form, float], ...] = (
    (("Question:", NAME, "\n", "Answer:", VALUE, "."), 0.6),
    (("Question: what is", NAME, "?", "\n", "Answer:", VALUE, "."), 0.15),
    (("Question: who is", NAME, "?", "\n", "Answer:", VALUE, "."), 0.1),
    (("Q:", NAME, "\n", "A:", VALUE, "."), 0.15),
)
CASES: tuple[tuple[Callable[[str], str], float], ...] = (
    (str, 0.7),
    (str.lower, 0.15),
    (str.upper, 0.15),
)


def draw_form(rng: np.random.Generator, forms: tuple[tuple[Form, float], ...]) -> Form:
    """One of the forms, by weight, and in some case; names and values keep theirs."""
    form = _draw(rng, forms)
    return in_case(form, _draw(rng, CASES))


def in_case(form: Form, case: Callable[[str], str]) -> Form:
    """The form in another case; names and values keep theirs."""
    return tuple(piece if piece in (NAME, VALUE) else case(piece) for piece in form)


def shown(form: Form, name: str = "Jane", value: str = "silver") -> str:
    """The form as text, on one line."""
    words = {NAME: f" {name}", VALUE: f" {value}", "\n": " / "}
    return "".join(words.get(piece, piece) for piece in form)


def _draw(rng: np.random.Generator, weighted: tuple[tuple[Drawn, float], ...]) -> Drawn:
    at = rng.random() * sum(weight for _, weight in weighted)
    for item, weight in weighted:
        at -= weight
        if at < 0:
            return item
    return weighted[-1][0]
