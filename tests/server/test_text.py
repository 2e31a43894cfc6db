import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from serving.text import TextStream
from tests.server.conftest import byte_ids, byte_tokenizer

TOKENIZER = byte_tokenizer()


def deltas(stream: TextStream, data: bytes) -> list[str]:
    """What each byte of `data` makes certain, then the rest; stops where the stream does."""
    out = []
    for token in byte_ids(TOKENIZER, data):
        out.append(stream.push(token))
        if stream.stopped:
            break
    return [*out, stream.flush()]


def test_characters_come_whole() -> None:
    assert deltas(TextStream(TOKENIZER), "aé€🙂b".encode()) == [
        *("a", "", "é", "", "", "€", "", "", "", "🙂", "b"),
        "",
    ]


def test_a_character_cut_short_comes_at_the_end() -> None:
    assert deltas(TextStream(TOKENIZER), "a🙂".encode()[:-1]) == ["a", "", "", "", "\ufffd"]


@given(st.binary(max_size=24))
def test_deltas_add_up(data: bytes) -> None:
    whole = TOKENIZER.decode(byte_ids(TOKENIZER, data))
    assert "".join(deltas(TextStream(TOKENIZER), data)) == whole
    assert "".join(deltas(TextStream(TOKENIZER, ["never said"]), data)) == whole


@given(
    st.text(alphabet="abé", max_size=24),
    st.lists(st.text(alphabet="abé", min_size=1, max_size=4), max_size=4),
)
def test_stop_strings(text: str, stop: list[str]) -> None:
    stream = TextStream(TOKENIZER, stop)
    said = "".join(deltas(stream, text.encode()))
    ends = [(text.find(word) + len(word), text.find(word)) for word in stop if word in text]
    assert stream.stopped == bool(ends)
    first_end = min(ends)[0] if ends else 0
    starts = [start for end, start in ends if end == first_end]
    assert said == (text[: min(starts)] if ends else text)


def test_special_tokens_are_no_text() -> None:
    stream = TextStream(TOKENIZER)
    assert [stream.push(256), stream.push(byte_ids(TOKENIZER, b"a")[0])] == ["", "a"]


def test_spaces_that_a_decoder_drops_at_the_start_alone() -> None:
    """Llama's and others': a token's text depends on whether another one stands before it."""
    words = Tokenizer(models.WordLevel({"▁a": 0, "▁b": 1, "c": 2}, unk_token="c"))
    words.decoder = decoders.Metaspace()
    stream = TextStream(PreTrainedTokenizerFast(tokenizer_object=words))
    assert [stream.push(token) for token in (0, 1, 2, 0)] == ["a", " b", "c", " a"]


@pytest.mark.parametrize("text", ["xend", "xen"])
def test_text_is_held_only_while_it_may_stop(text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    said = deltas(TextStream(tokenizer, ["end"]), text.encode())
    assert said[:3] == ["x", "", ""]
    assert "".join(said) == ("x" if text == "xend" else "xen")
