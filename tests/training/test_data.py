"""Corpus, tokenizer and words of the default model's training."""

import hashlib
import lzma
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bmojo_neuron.training.corpus import DATA, HELDOUT, HELDOUT_BOOKS, Text, load_corpus
from bmojo_neuron.training.dialogues import Filler
from bmojo_neuron.training.tokenizer import MARKERS, train_tokenizer
from bmojo_neuron.training.words import UNKNOWN, Words, is_kept_out, read_words, whole_words
from tests.training.conftest import ids_of, parts_of, text_of

ARTICLES = {"the", "my"}


def test_the_texts_are_the_documented_ones(corpus: dict[str, Text]) -> None:
    readme = (DATA / "README.md").read_text()
    rows = re.findall(r"^\| `(.+)` \| (\d+) \| ([\d,]+) \| ([\d,]+) \| `(.+)` \|$", readme, re.M)
    documented = {name: row for name, *row in rows}
    found = {}
    for path in DATA.glob("*.xz"):
        text = lzma.decompress(path.read_bytes())
        kind = corpus["bible" if "bible" in path.name else path.name.split(".")[0]]
        found[path.name] = [
            str(len(kind.train + kind.heldout)),
            f"{len(text):,}",
            f"{path.stat().st_size:,}",
            hashlib.sha256(text).hexdigest(),
        ]
    assert documented == found
    assert all(readme.count(f"\n| `{name}` |") == 2 for name in found)  # source and rights, too


def test_the_bible_splits_by_book(corpus: dict[str, Text]) -> None:
    bible = corpus["bible"]
    assert len(bible.train) == 66 - len(HELDOUT_BOOKS)
    assert len(bible.heldout) == len(HELDOUT_BOOKS)
    assert sum(book.count("\n") for book in bible.train + bible.heldout) == 31_102
    assert sum(book.count("\n") for book in bible.heldout) == 1_290
    assert bible.train[0].startswith("In the beginning God created the heaven and the earth.\n")
    assert bible.heldout[0].startswith("Now it came to pass in the days when the judges ruled")


def test_documents_are_whole_and_the_named_ones_are_held_out(corpus: dict[str, Text]) -> None:
    assert corpus.keys() == {"bible", *HELDOUT}
    for kind, beginnings in HELDOUT.items():
        documents: dict[str, str] = {}
        raw = lzma.decompress((DATA / f"{kind}.txt.xz").read_bytes()).decode()
        for line in raw.splitlines(keepends=True):
            if line.startswith("=== ") and line.count(" ") == 1:
                name = line[4:-1]
                documents[name] = ""
            else:
                documents[name] += line
        heldout = [body for name, body in documents.items() if name.startswith(beginnings)]
        assert corpus[kind].heldout == heldout
        assert corpus[kind].train == [body for body in documents.values() if body not in heldout]
        assert all(any(name.startswith(one) for name in documents) for one in beginnings)


def test_missing_corpus_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run from a git clone"):
        load_corpus(tmp_path)


@given(
    text=st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n'.:<|>")))
)
def test_round_trip_of_any_text(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert text_of(tokenizer, ids_of(tokenizer, text)) == text


@given(pieces=st.lists(st.sampled_from([*MARKERS, *whole_words(), " ", "  ", "\n", "s", ".", "é"])))
def test_round_trip_around_whole_words(
    tokenizer: PreTrainedTokenizerFast, pieces: list[str]
) -> None:
    text = "".join(pieces)
    assert text_of(tokenizer, ids_of(tokenizer, text)) == text


def test_every_word_and_marker_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == 4096
    for text in (*MARKERS, "\n", *(f" {word}" for word in whole_words())):
        ids = ids_of(tokenizer, text)
        assert len(ids) == 1, text
        assert text_of(tokenizer, ids) == text


def test_whole_words_do_not_match_inside_words(tokenizer: PreTrainedTokenizerFast) -> None:
    for text in (" Adams", " xAdam", " goldsmith", "FootNote: x"):
        assert not {" Adam", "Note:"} & set(parts_of(tokenizer, ids_of(tokenizer, text)))
    assert parts_of(tokenizer, ids_of(tokenizer, "\nNote: Adam is gold.\n")) == [
        *("\n", "Note:", " Adam", " is", " gold", ".", "\n")
    ]


def test_tokenizer_survives_saving(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "Note: Abraham is silver.\nQuestion: Abraham\nAnswer: silver.\n<|eos|> 3½ 中"
    assert loaded.encode(text) == [loaded.bos_token_id, *ids_of(tokenizer, text)]
    assert loaded.encode(text, add_special_tokens=False) == ids_of(tokenizer, text)
    assert list(loaded(text)) == ["input_ids", "attention_mask"]
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == (
        "<|bos|>",
        "<|eos|>",
        "<|pad|>",
    )


def test_tokenizer_training_is_deterministic(small: dict[str, Text]) -> None:
    def made() -> PreTrainedTokenizerFast:
        return train_tokenizer(small["bible"].train, ["Abraham", "silver"], 700)

    assert made().backend_tokenizer.to_str() == made().backend_tokenizer.to_str()


def test_tokenizer_refuses_words_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="vocab_size: expected at least"):
        train_tokenizer(["a"], whole_words(), 300)
    with pytest.raises(ValueError, match="whole_words: expected words made of letters"):
        train_tokenizer(["a"], ["two words"])


def test_filler_lines_are_the_text(
    tokenizer: PreTrainedTokenizerFast, corpus: dict[str, Text]
) -> None:
    documents = corpus["bible"].heldout[:2]
    filler = Filler(tokenizer, documents)
    lines = [text_of(tokenizer, filler.line(i)) for i in range(len(filler.starts))]
    assert lines == "".join(documents).splitlines(keepends=True)
    assert (filler.line(len(lines)) == filler.line(0)).all()
    assert filler.mean_line == pytest.approx(len(filler.tokens) / len(lines))


def test_filler_of_code_is_cut_at_lines_alone(
    tokenizer: PreTrainedTokenizerFast, corpus: dict[str, Text]
) -> None:
    """An indented line may hang together with the one before, whose newline is a token with it."""
    documents = corpus["code"].heldout[:3]
    filler = Filler(tokenizer, documents)
    lines = [text_of(tokenizer, filler.line(i)) for i in range(len(filler.starts))]
    assert "".join(lines) == "".join(documents)
    assert all(line.endswith("\n") for line in lines)


def test_filler_goes_on_with_its_beginning_where_a_stretch_is_longer(
    tokenizer: PreTrainedTokenizerFast, corpus: dict[str, Text]
) -> None:
    filler = Filler(tokenizer, [corpus["bible"].heldout[0][:2000].rsplit("\n", 1)[0] + "\n"])
    total = len(filler.tokens)
    tokens = filler.stretch(np.random.default_rng(0), 2 * total + 5)
    assert len(tokens) == 2 * total + 5
    np.testing.assert_array_equal(tokens[total:], tokens[: total + 5])
    turned = [np.roll(filler.tokens, -start) for start in filler.starts]
    assert any(np.array_equal(tokens[:total], one) for one in turned)
    for seed in range(20):  # what fits is not turned
        short = text_of(tokenizer, filler.stretch(np.random.default_rng(seed), total // 2))
        assert short in text_of(tokenizer, filler.tokens)


def test_words_are_distinct_and_listed_names_stand_in_the_text(corpus: dict[str, Text]) -> None:
    words = whole_words()
    assert len(set(words)) == len(words)
    assert UNKNOWN in words
    assert len(read_words("names")) >= 300
    assert len(read_words("values")) >= 200


def test_a_tenth_of_all_words_is_kept_out_whatever_their_case(corpus: dict[str, Text]) -> None:
    text = "".join(document for one in corpus.values() for document in one.train)
    words = set(re.findall(r"[a-z]{3,12}", text))
    assert np.mean([is_kept_out(word) for word in words]) == pytest.approx(0.1, abs=0.005)
    assert np.mean([is_kept_out(str(n)) for n in range(100_000)]) == pytest.approx(0.1, abs=0.005)
    for name in ("names", "values"):
        share = np.mean([is_kept_out(word) for word in read_words(name)])
        assert share == pytest.approx(0.1, abs=0.05)
    for word in list(words)[:200]:
        assert is_kept_out(word) == is_kept_out(word.upper()) == is_kept_out(word.capitalize())


@pytest.mark.parametrize("kept_out", [False, True])
@pytest.mark.parametrize("what", ["name", "value"])
def test_names_and_values_hold_only_words_of_their_side(
    words: Words, what: str, kept_out: bool
) -> None:
    rng = np.random.default_rng(0)
    draw: Callable[..., str] = getattr(words, what)
    drawn = [draw(rng, kept_out=kept_out) for _ in range(4000)]
    for one in drawn:
        head, *rest = one.removesuffix("'s").replace("'s ", " ").split(" ")
        component = rest if rest and head in ARTICLES else [head, *rest]
        assert all(is_kept_out(word) == kept_out for word in component), one
        assert UNKNOWN not in component
        assert all(re.fullmatch(r"[A-Za-z]+|\d{1,5}", word) for word in component), one
    assert len(set(drawn)) > 0.4 * len(drawn)


def test_names_and_values_come_in_every_shape(words: Words) -> None:
    rng = np.random.default_rng(0)

    def shape(text: str) -> str:
        text = re.sub(r"\d+", "9", re.sub(r"\b(?!the |my |s )[a-z]+", "x", text))
        return re.sub(r"[A-Z][a-z]+", "X", text)

    names = Counter(shape(words.name(rng)) for _ in range(4000))
    assert {"X", "x", "X X", "the x", "my x", "X's x"} <= names.keys()
    assert (names["X"] + names["x"]) / 4000 == pytest.approx(0.8, abs=0.03)
    values = Counter(shape(words.value(rng)) for _ in range(4000))
    assert values.keys() == {"x", "X", "9", "x x"}
    assert values["9"] / 4000 == pytest.approx(0.12, abs=0.02)
    assert values["x x"] / 4000 == pytest.approx(0.08, abs=0.02)


def test_most_values_are_more_than_the_listed_words(words: Words) -> None:
    rng = np.random.default_rng(0)
    values = {words.value(rng) for _ in range(4000)}
    listed = set(read_words("values"))
    made_up = {value for value in values - listed if value.isalpha()} - set(words._text)
    assert len(values - listed) > 1500
    assert len(made_up) > 200
