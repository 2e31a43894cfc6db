"""Dialogues and the copy warm-up: what is asked is true, and what is marked is what is asked."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from bmojo_neuron.training.corpus import Text
from bmojo_neuron.training.dialogues import (
    Dialogue,
    DialogueSource,
    Filler,
    draw_text,
    sample_copies,
    sample_dialogue,
)
from bmojo_neuron.training.forms import CASES, CORRECTIONS, NAME, NOTES, QUESTIONS, VALUE, Form
from bmojo_neuron.training.words import UNKNOWN, Words, is_kept_out
from tests.training.conftest import ids_of, parts_of, text_of

PHRASES = re.compile(
    r"^(?:(?:note:|note that|remember:|remember that|please note:|(?P<new>correction:)) "
    r"(?P<told>\S+(?: \S+)?) is (?P<now>now )?(?P<value>\w+(?: \w+)?)"
    r"|(?:question:(?: what is| who is)?|q:) (?P<asked>[^\s?]+(?: [^\s?]+)?)\??\n"
    r"(?:answer|a): (?P<answer>\w+(?: \w+)?))\.\n{1,2}",
    re.IGNORECASE | re.MULTILINE,
)
BEGINNINGS = re.compile(r"note|rem|please|corr|question|q:|n|p|r|c|q", re.IGNORECASE)


@pytest.fixture(scope="module")
def source(
    tokenizer: PreTrainedTokenizerFast, words: Words, corpus: dict[str, Text]
) -> DialogueSource:
    bible = Filler(tokenizer, corpus["bible"].heldout)
    return DialogueSource(tokenizer, words, {"bible": (bible, 1.0)})


@dataclass(frozen=True)
class Event:
    """A note (asked None) or a question, as a reader of the text finds it; places in tokens."""

    start: int
    stop: int
    name: str
    value: str
    is_question: bool
    places: range  # of the value


def read(source: DialogueSource, dialogue: Dialogue) -> list[Event]:
    """Every complete note and question, from the text alone; checks the marks against them."""
    parts = parts_of(source.tokenizer, dialogue.tokens)
    assert "".join(parts) == text_of(source.tokenizer, dialogue.tokens)
    parts[0] = "\n"  # bos
    text, starts = "".join(parts), np.cumsum([0, *map(len, parts)])
    events = []
    for found in PHRASES.finditer(text):
        group = "value" if found["told"] else "answer"
        low, high = found.span(group)
        first, behind = np.searchsorted(starts, [low - 1, high])  # from the blank before
        assert starts[first] == low - 1
        assert starts[behind] == high
        start, stop = np.searchsorted(starts, found.span())
        name = found["told"] or found["asked"]
        places = range(int(first), int(behind))
        events.append(Event(start, stop, name, found[group], group == "answer", places))
    is_value, is_answer = np.zeros((2, len(parts)), bool)
    for event in events:
        (is_answer if event.is_question else is_value)[list(event.places)] = True
        is_answer[event.places.stop] |= event.is_question  # the full stop
    end = events[-1].stop if events else 1
    np.testing.assert_array_equal(dialogue.is_value[:end], is_value[:end])
    np.testing.assert_array_equal(dialogue.is_answer[:end], is_answer[:end])
    if (dialogue.is_value | dialogue.is_answer)[end:].any():  # of a note or question that is cut
        last = text[starts[end] :].rstrip("\n").split("\n")[-2:]
        assert any(BEGINNINGS.match(line) for line in last), last
    return events


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(20, 700),
    notes=st.integers(1, 24),
    filler=st.floats(0, 0.95),
    changed=st.floats(0, 0.9),
    untold=st.floats(0, 0.5),
)
def test_answers_are_the_newest_value_and_marked(
    source: DialogueSource, seed: int, **options: Any
) -> None:
    dialogue = sample_dialogue(np.random.default_rng(seed), source, **options)
    fields = (dialogue.tokens, dialogue.is_answer, dialogue.is_value)
    assert [(len(one), str(one.dtype)) for one in fields] == [
        (options["length"], kind) for kind in ("int32", "bool", "bool")
    ]
    assert dialogue.tokens[0] == source.tokenizer.bos_token_id
    events = read(source, dialogue)
    told = {event.name for event in events if not event.is_question}
    assert len(told) <= options["notes"]
    known: dict[str, str] = {}
    for event in events:
        if not event.is_question:
            assert event.value != UNKNOWN
            known[event.name] = event.value
        elif event.value == UNKNOWN:
            assert options["untold"] > 0
            assert event.name not in told
        else:
            assert event.value == known[event.name]


class FewNames(Words):
    """The words, but of five names."""

    def name(self, rng: np.random.Generator, kept_out: bool = False) -> str:
        return str(rng.choice(["Anna", "Jane", "Mary", "Martha", "Ruth"]))


def test_a_told_name_is_told_once_and_never_asked_as_untold(
    source: DialogueSource, corpus: dict[str, Text]
) -> None:
    few = DialogueSource(source.tokenizer, FewNames(corpus), source.fillers)
    unknown = 0
    for events in many(few, 10, length=600, notes=4, filler=0.3, changed=0.0, untold=0.5):
        told = [event.name for event in events if not event.is_question]
        assert len(told) == len(set(told)) <= 4
        asked = {event.name for event in events if event.value == UNKNOWN}
        assert not asked & set(told)
        unknown += len(asked)
    assert unknown > 0


def many(source: DialogueSource, count: int, **options: Any) -> list[list[Event]]:
    rng = np.random.default_rng(0)
    return [read(source, sample_dialogue(rng, source, **options)) for _ in range(count)]


def test_training_dialogues_hold_no_word_that_is_kept_out(source: DialogueSource) -> None:
    seen = set()
    for events in many(source, 150, length=600, notes=16, filler=0.3, changed=0.5, untold=0.2):
        for event in events:
            name = re.sub(r"^(the|my) |'s\b", "", event.name)
            seen |= {*name.split(), *event.value.split()} - {UNKNOWN}
    assert len(seen) > 3000
    assert not [word for word in seen if is_kept_out(word)]


@pytest.mark.parametrize("changed", [0.0, 0.3, 0.7])
def test_what_was_told_is_corrected_at_the_asked_share(
    source: DialogueSource, changed: float
) -> None:
    told = corrected = 0
    for events in many(source, 60, length=3000, notes=4, filler=0.3, changed=changed):
        notes = [event for event in events if not event.is_question]
        early = [note for note in notes if note.start < 600]  # most corrections still have room
        told += len(early)
        for note in early:
            corrected += any(one.name == note.name and one.start > note.start for one in notes)
    assert corrected / told == pytest.approx(changed, abs=0.09)


@pytest.mark.parametrize("untold", [0.0, 0.3])
def test_the_asked_share_of_questions_is_for_untold_names(
    source: DialogueSource, untold: float
) -> None:
    dialogues = many(source, 40, length=1000, notes=6, filler=0.3, untold=untold)
    asked = [event for events in dialogues for event in events if event.is_question]
    share = np.mean([event.value == UNKNOWN for event in asked])
    assert len(asked) > 800
    assert share == pytest.approx(untold, abs=0.04)


@pytest.mark.parametrize("filler", [0.1, 0.5, 0.9])
def test_filler_is_the_asked_share_and_more_where_nothing_is_due(
    source: DialogueSource, filler: float
) -> None:
    def share(notes: int) -> float:
        dialogues = many(source, 40, length=3000, notes=notes, filler=filler, changed=0.2)
        spoken = [event.stop - event.start for events in dialogues for event in events]
        return 1 - sum(spoken) / (40 * 3000)

    assert share(40) == pytest.approx(filler, abs=0.05)
    assert share(4) > filler - 0.02


def test_a_dense_dialogue_is_notes_then_questions(source: DialogueSource) -> None:
    for events in many(source, 20, length=256, notes=8, changed=0.0):
        assert [event.is_question for event in events[:8]] == [False] * 8
        assert all(event.is_question for event in events[8:])
        assert len(events) > 15


def test_questions_keep_their_least_distance(source: DialogueSource) -> None:
    asked = 0
    for events in many(source, 20, length=2000, notes=4, filler=0.5, min_distance=100):
        said: dict[str, int] = {}
        for event in events:
            if event.is_question and event.name in said:
                assert event.start - said[event.name] >= 100
                asked += 1
            said[event.name] = event.stop
    assert asked > 100


def test_distances_are_of_every_size(source: DialogueSource) -> None:
    distances = []
    for events in many(source, 30, length=4000, notes=4, filler=0.5, changed=0.0):
        said: dict[str, int] = {}
        for event in events:
            if event.is_question and event.name in said:
                distances.append(event.start - said[event.name])
            said[event.name] = event.stop
    size = np.log2(distances)
    shares = [np.mean((low <= size) & (size < low + 3)) for low in (3, 6, 9)]
    assert min(shares) > 0.1, shares


def test_same_seed_same_dialogue(source: DialogueSource) -> None:
    def made(seed: int) -> Dialogue:
        rng = np.random.default_rng(seed)
        return sample_dialogue(rng, source, length=512, notes=8, filler=0.5, untold=0.1)

    first, again = made(1), made(1)
    for part in ("tokens", "is_answer", "is_value"):
        assert (getattr(first, part) == getattr(again, part)).all()
    assert (first.tokens != made(2).tokens).any()


@pytest.mark.parametrize("name", ["Jane", "garden", "Mary Baru", "the fish", "my dog", "Dan's tea"])
@pytest.mark.parametrize("value", ["silver", "Weaknesses", "40213", "amber olive", UNKNOWN])
def test_every_form_in_every_case_is_what_its_text_gives(
    source: DialogueSource, name: str, value: str
) -> None:
    for forms in (NOTES, CORRECTIONS, QUESTIONS):
        for form, weight in forms:
            assert weight > 0
            for case, _ in CASES:
                cased: Form = tuple(p if p in (NAME, VALUE) else case(p) for p in form)
                said = source.say((*cased, "\n"), name, value)
                text = text_of(source.tokenizer, said.tokens)
                assert ids_of(source.tokenizer, text) == said.tokens.tolist(), text
                assert text_of(source.tokenizer, said.tokens[said.is_value]) == f" {value}"
                found = PHRASES.fullmatch(text)
                assert found is not None, text
                assert name in (found["told"], found["asked"])
                assert value in (found["value"], found["answer"])


def test_the_text_of_a_dialogue_gives_its_tokens(source: DialogueSource) -> None:
    rng = np.random.default_rng(3)
    for filler in (0.0, 0.5):
        dialogue = sample_dialogue(rng, source, length=1024, notes=16, filler=filler, untold=0.1)
        tokens = dialogue.tokens.tolist()[1:]
        text = text_of(source.tokenizer, tokens)
        assert ids_of(source.tokenizer, text)[:1000] == tokens[:1000]


def test_bad_arguments_are_named(source: DialogueSource) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="filler: expected"):
        sample_dialogue(rng, source, length=64, notes=2, filler=1.0)
    with pytest.raises(ValueError, match="notes: expected at least 1"):
        sample_dialogue(rng, source, length=64, notes=0)


def test_fillers_are_taken_by_weight(
    tokenizer: PreTrainedTokenizerFast, words: Words, corpus: dict[str, Text]
) -> None:
    fillers = [
        Filler(tokenizer, corpus[kind].heldout[:1]) for kind in ("bible", "code", "licences")
    ]
    weights = (1.0, 0.0, 3.0)
    weighted = {str(i): pair for i, pair in enumerate(zip(fillers, weights, strict=True))}
    source, rng = DialogueSource(tokenizer, words, weighted), np.random.default_rng(0)
    taken = [fillers.index(draw_text(rng, source.fillers)) for _ in range(1000)]
    assert [taken.count(i) / 1000 for i in range(3)] == pytest.approx([0.25, 0, 0.75], abs=0.05)


def test_copies_can_be_foreseen_from_what_stands_before(source: DialogueSource) -> None:
    rng = np.random.default_rng(0)
    answers = 0
    for length in (10, 64, 257, 1000):
        copies = sample_copies(rng, source, length)
        tokens = copies.tokens.tolist()
        assert len(tokens) == length
        assert tokens[0] == source.bos
        assert not copies.is_value.any()
        following: dict[tuple[int, int], set[int]] = {}
        for at in range(3, length):
            if copies.is_answer[at]:
                assert tokens[at] in following[tokens[at - 2], tokens[at - 1]]
                answers += 1
            following.setdefault((tokens[at - 2], tokens[at - 1]), set()).add(tokens[at])
    assert 0.35 < answers / 1331 < 0.6


def test_copies_read_every_ordinary_token_alike(source: DialogueSource) -> None:
    rng = np.random.default_rng(0)
    special = set(source.tokenizer.all_special_ids)
    assert set(source.ordinary) == set(range(len(source.tokenizer))) - special
    fresh = []
    for _ in range(100):
        copies = sample_copies(rng, source, 2000)
        fresh.append(copies.tokens[1:][~copies.is_answer[1:]])
    counts = np.bincount(np.concatenate(fresh), minlength=len(source.tokenizer))
    assert not counts[list(special)].any()
    assert (counts[source.ordinary] > 0).mean() == 1.0
    pieces = parts_of(source.tokenizer, source.ordinary)
    whole = [piece[1:].isalpha() and piece[0] == " " for piece in pieces]
    kept_out = np.array([ok and is_kept_out(p[1:]) for ok, p in zip(whole, pieces, strict=True)])
    assert kept_out.sum() > 100
    means = counts[source.ordinary][kept_out].mean(), counts[source.ordinary][~kept_out].mean()
    assert means[0] == pytest.approx(means[1], rel=0.1)
