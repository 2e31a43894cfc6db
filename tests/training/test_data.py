"""Corpus, tokenizer and dialogues of the default model's training."""

import hashlib
import lzma
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bmojo_neuron.training.corpus import TEXT_FILE, load_corpus
from bmojo_neuron.training.dialogues import (
    Dialogue,
    DialogueSource,
    Split,
    evaluation_dialogue,
    is_heldout_pair,
    read_words,
    sample_dialogue,
    whole_words,
)
from bmojo_neuron.training.tokenizer import MARKERS, train_tokenizer

CORPUS = load_corpus()
TOKENIZER = train_tokenizer(CORPUS.train, whole_words())
SOURCE = DialogueSource(TOKENIZER, CORPUS.train[:2000])


def ids_of(text: str) -> list[int]:
    """The tokens of the text alone, without the bos before it."""
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert isinstance(ids, list)
    return ids


def text_of(tokens: list[int] | NDArray[np.int32]) -> str:
    text = TOKENIZER.decode(tokens)
    assert isinstance(text, str)
    return text


def answers_in(text: str) -> list[tuple[str, str, bool]]:
    """(name, value, asked?) of every complete note and question, read from the text alone."""
    found, asked = [], None
    for line in text.split("\n"):
        words = line.rstrip(".").split(" ")
        if line.startswith("Note: ") and len(words) == 4:
            found.append((words[1], words[3], False))
        elif line.startswith("Question: "):
            asked = words[1]
        elif line.startswith("Answer: ") and len(words) == 2:
            assert asked is not None
            found.append((asked, words[1], True))
    return found


def check(dialogue: Dialogue) -> None:
    """Answers, their truth and their distances, worked out again from the tokens' text."""
    pieces = [text_of([token]) for token in dialogue.tokens]
    known: dict[str, tuple[str, int]] = {}
    for place in range(len(pieces)):
        fourth, third, second, first, piece = [*[""] * 4, *pieces][place : place + 5]
        if third == "Note:":
            known[second] = (piece, place)
        if first == "Answer:":
            assert fourth == "Question:"
            name = third
            value, stated = known[name]
            assert dialogue.is_answer[place]
            assert piece == value
            assert dialogue.distance[place] == place - stated
            known[name] = (value, place)
        else:
            assert not dialogue.is_answer[place]
            assert dialogue.distance[place] == 0


def test_corpus_is_the_documented_text() -> None:
    digest = hashlib.sha256(lzma.decompress(TEXT_FILE.read_bytes())).hexdigest()
    assert digest in TEXT_FILE.with_name("README.md").read_text()


def test_corpus_splits_by_book() -> None:
    assert len(CORPUS.train) + len(CORPUS.heldout) == 31_102
    assert len(CORPUS.heldout) == 1_290
    assert CORPUS.train[0] == "In the beginning God created the heaven and the earth."
    assert not any("\n" in verse for verse in CORPUS.train)
    assert not set(CORPUS.train) & set(CORPUS.heldout)


def test_missing_corpus_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run from a git clone"):
        load_corpus(tmp_path / "none.xz")


@given(st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n'.:<|>"))))
def test_round_trip_of_any_text(text: str) -> None:
    assert TOKENIZER.decode(ids_of(text)) == text


@given(st.lists(st.sampled_from([*MARKERS, *whole_words(), " ", "  ", "\n", "s", ".", "é"])))
def test_round_trip_around_whole_words(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert TOKENIZER.decode(ids_of(text)) == text


def test_every_word_and_marker_is_one_token() -> None:
    assert len(TOKENIZER) == 4096
    for text in (*MARKERS, *(f" {word}" for word in whole_words())):
        ids = ids_of(text)
        assert len(ids) == 1, text
        assert TOKENIZER.decode(ids) == text


def test_whole_words_do_not_match_inside_words() -> None:
    for text in (" Adams", " xAdam", " goldsmith", "FootNote: x"):
        pieces = [TOKENIZER.decode([i]) for i in ids_of(text)]
        assert not {" Adam", "Note:"} & set(pieces)
    assert [TOKENIZER.decode([i]) for i in ids_of("\nNote: Adam is gold.\n")] == [
        *("\n", "Note:", " Adam", " is", " gold", ".", "\n")
    ]


def test_tokenizer_survives_saving(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "Note: Abraham is silver.\nQuestion: Abraham\nAnswer: silver.\n<|eos|> 3½ 中"
    assert loaded.encode(text) == [loaded.bos_token_id, *ids_of(text)]
    assert loaded.encode(text, add_special_tokens=False) == ids_of(text)
    assert list(loaded(text)) == ["input_ids", "attention_mask"]
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == (
        "<|bos|>",
        "<|eos|>",
        "<|pad|>",
    )


def test_tokenizer_training_is_deterministic() -> None:
    def made() -> PreTrainedTokenizerFast:
        return train_tokenizer(CORPUS.train[:300], ["Abraham", "silver"], 700)

    assert made().backend_tokenizer.to_str() == made().backend_tokenizer.to_str()


def test_tokenizer_refuses_words_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="vocab_size: expected at least"):
        train_tokenizer(["a"], whole_words(), 300)
    with pytest.raises(ValueError, match="whole_words: expected words made of letters"):
        train_tokenizer(["a"], ["two words"])


def test_words_are_distinct_and_heldout_names_stand_in_the_text() -> None:
    words = whole_words()
    assert len(set(words)) == len(words)
    assert len(read_words("names")) >= 300
    assert len(read_words("values")) >= 200
    counts = Counter(re.findall(r"\w+", "\n".join(CORPUS.train)))
    assert min(counts[name] for name in read_words("heldout_names")) >= 20


def test_about_a_tenth_of_the_pairs_is_held_out() -> None:
    pairs = [is_heldout_pair(n, v) for n in read_words("names") for v in read_words("values")]
    assert abs(np.mean(pairs) - 0.1) < 0.01


def test_training_dialogues_show_nothing_held_out() -> None:
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(2000):
        dialogue = sample_dialogue(rng, SOURCE, length=256, notes=12, filler=0.3)
        for name, value, _ in answers_in(text_of(dialogue.tokens)):
            assert name in read_words("names")
            assert not is_heldout_pair(name, value)
            seen += 1
    assert seen > 20_000


@pytest.mark.parametrize("split", ["train", "heldout_pairs", "heldout_names"])
def test_each_split_shows_its_own_pairs(split: Split) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        dialogue = sample_dialogue(rng, SOURCE, length=256, notes=8, filler=0.3, split=split)
        for name, value, _ in answers_in(text_of(dialogue.tokens)):
            assert (name in read_words("heldout_names")) == (split == "heldout_names")
            if split != "heldout_names":
                assert is_heldout_pair(name, value) == (split == "heldout_pairs")


@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(20, 700),
    notes=st.integers(1, 24),
    filler=st.floats(0, 0.95),
    questions=st.none() | st.integers(0, 20),
    min_distance=st.integers(1, 80),
    span=st.none() | st.integers(0, 300),
)
def test_distances_answers_and_limits(
    seed: int,
    length: int,
    notes: int,
    filler: float,
    questions: int | None,
    min_distance: int,
    span: int | None,
) -> None:
    dialogue = sample_dialogue(
        np.random.default_rng(seed),
        SOURCE,
        length=length,
        notes=notes,
        questions=questions,
        filler=filler,
        min_distance=min_distance,
        max_distance=None if span is None else min_distance + span,
    )
    assert [len(part) for part in dialogue] == [length] * 3
    assert [str(part.dtype) for part in dialogue] == ["int32", "bool", "int32"]
    assert dialogue.tokens[0] == TOKENIZER.bos_token_id
    check(dialogue)
    distances = dialogue.distance[dialogue.is_answer]
    assert questions is None or len(distances) <= questions
    assert (distances >= min_distance).all()
    assert span is None or (distances <= min_distance + span).all()


def test_text_of_a_dialogue_gives_its_tokens() -> None:
    dialogue = sample_dialogue(
        np.random.default_rng(3), SOURCE, length=2048, notes=16, filler=0.5, blank=0.3
    )
    again = ids_of(text_of(dialogue.tokens))
    assert again[:2000] == dialogue.tokens[:2000].tolist()


def test_dense_dialogue_is_notes_then_questions() -> None:
    rng = np.random.default_rng(0)
    dialogue = sample_dialogue(rng, SOURCE, length=256, notes=8, names_pool=32, values_pool=32)
    stated = [asked for _, _, asked in answers_in(text_of(dialogue.tokens))]
    assert stated == sorted(stated)
    assert dialogue.is_answer.sum() > 22
    assert set(dialogue.tokens[dialogue.is_answer]) <= set(SOURCE.values[:32])


def test_filler_is_about_the_asked_share() -> None:
    rng = np.random.default_rng(0)
    answers = [
        sample_dialogue(rng, SOURCE, length=1024, notes=8, filler=0.5).is_answer.sum()
        for _ in range(100)
    ]
    assert 50 < np.mean(answers) < 70  # of (512 - 8 * 6) / 7 = 66


def test_same_seed_same_dialogue() -> None:
    def made(seed: int) -> Dialogue:
        rng = np.random.default_rng(seed)
        return sample_dialogue(rng, SOURCE, length=512, notes=8, filler=0.5)

    for left, right in zip(made(1), made(1), strict=True):
        assert (left == right).all()
    assert (made(1).tokens != made(2).tokens).any()


@given(
    seed=st.integers(0, 2**32 - 1),
    notes=st.integers(1, 8),
    more=st.integers(0, 1500),
    lead=st.integers(0, 100),
    split=st.sampled_from(["train", "heldout_pairs", "heldout_names"]),
)
def test_evaluation_is_asked_once_at_the_exact_distance(
    seed: int, notes: int, more: int, lead: int, split: Split
) -> None:
    distance = 7 * notes + 1 + more
    dialogue = evaluation_dialogue(
        np.random.default_rng(seed), SOURCE, distance=distance, notes=notes, split=split, lead=lead
    )
    assert [len(part) for part in dialogue] == [lead + distance + 7 * notes] * 3
    assert dialogue.distance[dialogue.is_answer].tolist() == [distance] * notes
    check(dialogue)


def test_filler_goes_on_with_its_beginning_where_a_distance_is_longer() -> None:
    source = DialogueSource(TOKENIZER, CORPUS.train[:20])
    total = len(source.filler)
    tokens = source.stretch(np.random.default_rng(0), 2 * total + 5)
    assert len(tokens) == 2 * total + 5
    np.testing.assert_array_equal(tokens[total:-1], tokens[: total + 4])
    turned = [np.roll(source.filler, -start) for start in source.line_starts]
    assert any(np.array_equal(tokens[:total], one) for one in turned)
    assert tokens[-1] == source.newline
    check(evaluation_dialogue(np.random.default_rng(0), source, distance=3 * total, notes=2))


def test_bad_arguments_are_named() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="filler: expected"):
        sample_dialogue(rng, SOURCE, length=64, notes=2, filler=1.0)
    with pytest.raises(ValueError, match="notes: expected 1 to 8"):
        sample_dialogue(rng, SOURCE, length=64, notes=9, names_pool=8)
    with pytest.raises(ValueError, match="distance: expected at least 22"):
        evaluation_dialogue(rng, SOURCE, distance=21, notes=3)
    with pytest.raises(ValueError, match="tokenizer: expected one token"):
        DialogueSource(train_tokenizer(CORPUS.train[:50], [], 300), ["a"])
