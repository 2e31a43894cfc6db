"""Recall dialogues: notes (name -> value) and questions about them, spread in filler text.

    Note: Abraham is silver.        Note: | Abraham | is | silver | . | \\n
    (verses)
    Question: Abraham               Question: | Abraham | \\n | Answer: | silver | . | \\n
    Answer: silver.

A value stands two tokens behind the name in a note, and so does the token which has to predict it
in a question (`Answer:`): reading a memory is the same step in both. Each `|` above is a token
border of `bmojo_neuron.training.tokenizer`. Blank lines may follow notes and questions.

The distance of an answer is counted in tokens between the two positions of the value: that of the
answer minus that of its latest occurrence with this name, in a note or in an earlier answer.
"""

import zlib
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from bmojo_neuron.training.tokenizer import ANSWER, NOTE, QUESTION

Split = Literal["train", "heldout_pairs", "heldout_names"]

HELDOUT_PAIRS = 0.1  # share of the (name, value) pairs that training never shows
NEVER = np.iinfo(np.int32).max

NOTE_LENGTH, NOTE_VALUE = 6, 3  # tokens, and the value's place among them
QUESTION_LENGTH, QUESTION_VALUE = 7, 4


class Dialogue(NamedTuple):
    """One sequence and what is to be recalled in it."""

    tokens: NDArray[np.int32]  # (length,)
    is_answer: NDArray[np.bool_]  # (length,) the token is a value that has to be recalled
    distance: NDArray[np.int32]  # (length,) of the answers; 0 elsewhere


@cache
def read_words(name: str) -> tuple[str, ...]:
    """The words of `names`, `heldout_names` or `values`, in an order that is fixed but mixed."""
    text = files(__package__).joinpath(f"{name}.txt").read_text(encoding="utf-8")
    return tuple(sorted(text.split(), key=lambda word: zlib.crc32(word.encode())))


def whole_words() -> list[str]:
    """All words that the tokenizer must hold as one token each."""
    return [word for name in ("names", "heldout_names", "values") for word in read_words(name)]


def is_heldout_pair(name: str, value: str) -> bool:
    """A fixed rule: whether this pair is kept from training."""
    return zlib.crc32(f"{name} is {value}".encode()) % 1000 < 1000 * HELDOUT_PAIRS


class DialogueSource:
    """What dialogues are made of, as token ids.

    Args:
        tokenizer: one of `train_tokenizer(..., whole_words())`.
        lines: filler text without newlines; dialogues take stretches of consecutive lines.

    Raises:
        ValueError: the tokenizer cuts one of the words into several tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, lines: Sequence[str]) -> None:
        encoded = tokenizer([line + "\n" for line in lines], add_special_tokens=False)["input_ids"]
        self.filler = np.concatenate([np.asarray(line, np.int32) for line in encoded])
        ends = np.cumsum([len(line) for line in encoded])
        self.line_starts, self.line_ends = ends - [len(line) for line in encoded], ends
        self.mean_line = len(self.filler) / len(lines)

        def one(text: str) -> int:
            ids = tokenizer.encode(text, add_special_tokens=False)
            if len(ids) != 1:
                raise ValueError(
                    f"tokenizer: expected one token for {text!r}, got {len(ids)}; "
                    "train it with train_tokenizer(texts, whole_words())"
                )
            return int(ids[0])

        assert tokenizer.bos_token_id is not None
        self.bos, self.newline = int(tokenizer.bos_token_id), one("\n")
        self.names = _ids(one, read_words("names"))
        self.heldout_names = _ids(one, read_words("heldout_names"))
        self.values = _ids(one, read_words("values"))
        self.heldout_pairs = np.array(
            [[is_heldout_pair(n, v) for v in read_words("values")] for n in read_words("names")]
        )
        self._note = np.array([one(NOTE), 0, one(" is"), 0, one("."), self.newline], np.int32)
        self._question = np.array(
            [one(QUESTION), 0, self.newline, one(ANSWER), 0, one("."), self.newline], np.int32
        )

    def note(self, name: int, value: int) -> NDArray[np.int32]:
        """(NOTE_LENGTH,) token ids."""
        tokens = self._note.copy()
        tokens[1], tokens[NOTE_VALUE] = name, value
        return tokens

    def question(self, name: int, value: int) -> NDArray[np.int32]:
        """(QUESTION_LENGTH,) token ids."""
        tokens = self._question.copy()
        tokens[1], tokens[QUESTION_VALUE] = name, value
        return tokens

    def line(self, index: int) -> NDArray[np.int32]:
        """The tokens of one filler line, its newline included."""
        return self.filler[self.line_starts[index] : self.line_ends[index]]

    def stretch(self, rng: np.random.Generator, length: int) -> NDArray[np.int32]:
        """(length,) consecutive filler tokens from the start of a line, ended by a newline.

        What is longer than the filler goes on with its beginning.
        """
        starts = self.line_starts[self.line_starts + length <= len(self.filler)]
        if len(starts) == 0:
            starts = self.line_starts
        start = starts[rng.integers(len(starts))]
        tokens = self.filler.take(np.arange(start, start + length), mode="wrap")
        tokens[-1:] = self.newline
        return tokens

    def draw_pairs(
        self,
        rng: np.random.Generator,
        count: int,
        *,
        split: Split,
        names_pool: int | None = None,
        values_pool: int | None = None,
        changes: int = 0,
    ) -> list[tuple[int, int]]:
        """`count` pairs (name id, value id) with different names, then `changes` other pairs
        whose names are among them.

        Raises:
            ValueError: the pools hold fewer than `count` names with a pair of this split.
        """
        values = self.values[:values_pool]
        if split == "heldout_names":
            names = self.heldout_names[:names_pool]
            allowed = np.ones((len(names), len(values)), bool)
        else:
            names = self.names[:names_pool]
            heldout = self.heldout_pairs[: len(names), : len(values)]
            allowed = heldout if split == "heldout_pairs" else ~heldout
        usable = np.flatnonzero(allowed.any(axis=1))
        if not 1 <= count <= len(usable):
            raise ValueError(
                f"notes: expected 1 to {len(usable)} (names of split {split!r} with a value in "
                f"these pools), got {count}; for more enlarge names_pool or values_pool"
            )
        rows = rng.permutation(usable)[:count]
        rows = np.concatenate([rows, rng.permutation(rows)[:changes]])
        return [
            (int(names[row]), int(values[rng.choice(np.flatnonzero(allowed[row]))])) for row in rows
        ]


def sample_dialogue(
    rng: np.random.Generator,
    source: DialogueSource,
    *,
    length: int,
    notes: int,
    questions: int | None = None,
    filler: float = 0.0,
    min_distance: int = 1,
    max_distance: int | None = None,
    names_pool: int | None = None,
    values_pool: int | None = None,
    split: Split = "train",
    changed: float = 0.1,
    blank: float = 0.1,
) -> Dialogue:
    """A dialogue that starts with the bos token and asks as often as the filler leaves room for.

    With `filler` 0 the notes stand back to back, then the questions. With more, the notes arrive
    at random over the first `filler` of the sequence. A name is asked again and again: each time
    it is stated or answered it draws a distance, log-uniformly between the limits, and whichever
    name is due first is asked next.

    Args:
        length: tokens of the dialogue; what stands at its end may be cut.
        notes: pairs stated, each of another name.
        questions: at most so many; None for no limit.
        filler: expected share of filler tokens, 0 <= filler < 1. It is exceeded where no name
            may be asked.
        min_distance, max_distance: limits for each answer's distance; None for no upper one.
        names_pool, values_pool: use only so many of the names and values; None for all.
        split: `train` (pairs that training may show), `heldout_pairs` (names of training in pairs
            which it never shows), `heldout_names` (names that training never shows in a note).
        changed: share of the notes that a later note of the same name overrides.
        blank: share of notes and questions followed by a blank line.

    Raises:
        ValueError: `filler` is outside its range, or the pools are too small for `notes`.
    """
    if not 0 <= filler < 1:
        raise ValueError(f"filler: expected 0 <= filler < 1, got {filler}")
    farthest = length if max_distance is None else max_distance
    nearest = min(max(min_distance, 1), farthest)
    limit = length if questions is None else questions

    changes = int(rng.binomial(notes, changed))
    pairs = source.draw_pairs(
        rng,
        notes,
        split=split,
        names_pool=names_pool,
        values_pool=values_pool,
        changes=changes,
    )
    arrival = rng.random(len(pairs)) * filler * length
    row_of = {name: row for row, (name, _) in enumerate(pairs[:notes])}
    for change in range(notes, len(pairs)):
        first = arrival[row_of[pairs[change][0]]]
        arrival[change] = first + rng.random() * (filler * length - first)
    order = np.argsort(arrival, kind="stable")

    ids = np.array(pairs[:notes], np.int32).reshape(notes, 2)  # name, its value at present
    last = np.full(notes, NEVER, np.int64)  # position of the pair's latest value
    due = np.full(notes, float(NEVER))  # position where the name wishes to be asked

    def state(row: int, position: int) -> None:
        last[row] = position
        due[row] = position + nearest * (farthest / nearest) ** rng.random()

    tokens = np.empty(length + QUESTION_LENGTH + 1, np.int32)
    is_answer = np.zeros(len(tokens), bool)
    distance = np.zeros(len(tokens), np.int32)
    tokens[0], position = source.bos, 1
    lines = len(source.line_starts)
    line = int(rng.integers(lines))
    share = filler / source.mean_line
    chance = share / (share + (1 - filler) / QUESTION_LENGTH)
    stated = 0

    while position < length:
        event = None
        if rng.random() >= chance:
            if stated < len(order) and arrival[order[stated]] <= position:
                name, value = pairs[order[stated]]
                row = row_of[name]
                ids[row, 1] = value
                event = source.note(name, value)
                state(row, position + NOTE_VALUE)
                stated += 1
            elif limit > 0:
                ages = position + QUESTION_VALUE - last
                eligible = (ages >= min_distance) & (ages <= farthest)
                row = int(np.argmin(np.where(eligible, due, np.inf)))
                if eligible[row]:
                    event = source.question(int(ids[row, 0]), int(ids[row, 1]))
                    answer = position + QUESTION_VALUE
                    is_answer[answer], distance[answer] = True, ages[row]
                    state(row, answer)
                    limit -= 1
        if event is not None:
            tokens[position : position + len(event)] = event
            position += len(event)
            if rng.random() < blank:
                tokens[position] = source.newline
                position += 1
            continue
        verse = source.line(line)[: len(tokens) - position]
        tokens[position : position + len(verse)] = verse
        position += len(verse)
        line = (line + 1) % lines
    return Dialogue(tokens[:length], is_answer[:length], distance[:length])


def evaluation_dialogue(
    rng: np.random.Generator,
    source: DialogueSource,
    *,
    distance: int,
    notes: int = 1,
    split: Split = "heldout_pairs",
    lead: int = 0,
) -> Dialogue:
    """Notes, filler, questions: each note asked once, all at exactly the same distance.

    bos, `lead` filler tokens, the notes (each followed by a blank line, so that notes and
    questions take seven tokens alike), one stretch of filler, the questions in the same order:
    lead + distance + 7 * notes tokens in all, whatever is drawn.

    Raises:
        ValueError: `distance` is too small for so many notes.
    """
    block = QUESTION_LENGTH * notes
    gap = distance - (QUESTION_VALUE - NOTE_VALUE) - block
    if gap < 0:
        raise ValueError(
            f"distance: expected at least {distance - gap} for {notes} notes, got {distance}"
        )
    pairs = source.draw_pairs(rng, notes, split=split)
    blank = np.array([source.newline], np.int32)
    parts = [np.array([source.bos], np.int32), source.stretch(rng, lead)]
    for name, value in pairs:
        parts += [source.note(name, value), blank]
    parts.append(source.stretch(rng, gap))
    parts += [source.question(name, value) for name, value in pairs]
    tokens = np.concatenate(parts)
    is_answer = np.zeros(len(tokens), bool)
    is_answer[len(tokens) - block + QUESTION_VALUE :: QUESTION_LENGTH] = True
    return Dialogue(tokens, is_answer, np.where(is_answer, distance, 0).astype(np.int32))


def _ids(one: Callable[[str], int], words: Sequence[str]) -> NDArray[np.int32]:
    return np.array([one(f" {word}") for word in words], np.int32)
