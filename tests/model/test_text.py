import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bmojo_neuron.text import PromptEncoder, TextStream
from tests.model.pieces import PIECES, TERM, USER, sentencepiece
from tests.server.conftest import byte_ids, byte_tokenizer

TOKENIZER = byte_tokenizer()
TOKENIZERS = {
    "byte level": TOKENIZER,
    "bpe": sentencepiece("bpe"),
    "unigram": sentencepiece("unigram"),
}
ENCODERS = {kind: PromptEncoder(tokenizer) for kind, tokenizer in TOKENIZERS.items()}


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
def test_text_is_held_only_while_it_may_stop(text: str) -> None:
    said = deltas(TextStream(TOKENIZER, ["end"]), text.encode())
    assert said[:3] == ["x", "", ""]
    assert "".join(said) == ("x" if text == "xend" else "xen")


def answer(tokenizer: PreTrainedTokenizerFast, before: list[int], tokens: list[int]) -> str:
    stream = TextStream(tokenizer)
    stream.start(before)
    return "".join([stream.push(token) for token in tokens]) + stream.flush()


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_first_space_of_an_answer_is_kept(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    a, b, user, eos = tokenizer.convert_tokens_to_ids(["▁a", "▁b", USER, "</s>"])
    assert answer(tokenizer, [a], [b, user, a, b]) == " b a b"
    assert answer(tokenizer, [a, user, user], [b]) == " b", "after special tokens too"
    assert answer(tokenizer, [eos], [a, b]) == "a b", "but at the start of all text there is none"
    assert answer(tokenizer, [a, *[user] * 99], [b]) == " b"


texts = st.text(st.sampled_from(" ab c\n\u0301é🙂👩\u200d🚀\u2028▁<s>"), max_size=40)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(deadline=None)
@given(st.data())
def test_deltas_are_what_an_answer_adds_to_its_prompt(kind: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]
    encode = ENCODERS[kind]
    before = encode(data.draw(texts), parse_special_tokens=True)
    tokens: list[int] = []
    for text in data.draw(st.lists(texts, max_size=4)):
        tokens += encode(text, parse_special_tokens=True)
        tokens += [tokenizer.eos_token_id] * data.draw(st.integers(0, 2))
    prompt, whole = (
        tokenizer.decode(ids, skip_special_tokens=True) for ids in (before, before + tokens)
    )
    assert whole.startswith(prompt)
    assert answer(tokenizer, before, tokens) == whole[len(prompt) :]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_names_of_special_tokens_in_a_prompt_are_text(kind: str) -> None:
    encode = PromptEncoder(TOKENIZERS[kind])
    text = "a</s><s> " + USER

    def ids(*pieces: str) -> list[int]:
        return [PIECES.index(piece) for piece in pieces]

    bytes_ = [f"<0x{byte:02X}>" for byte in b"ur"]
    letters = ["▁a", *"</s>", *"<s>", "▁", "<", bytes_[0], *"se", bytes_[1], ">"]
    assert encode(text, parse_special_tokens=False) == ids(*letters)
    control = encode(text, parse_special_tokens=True)
    assert control[:3] == ids("▁a", "</s>", "<s>")
    assert control[-1] == len(PIECES), "the one that is no piece of the model"
    assert encode(text, parse_special_tokens=False) == ids(*letters), "one call changes no other"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("parse_special_tokens", [False, True])
def test_added_words_stay_whole(kind: str, parse_special_tokens: bool) -> None:
    encode = PromptEncoder(TOKENIZERS[kind])
    ids = encode(f"a{TERM}", parse_special_tokens=parse_special_tokens)
    assert ids == [PIECES.index("▁a"), len(PIECES) + 1]


def test_names_of_special_tokens_are_text_to_models_of_whole_words() -> None:
    """They find the name in their vocabulary, whatever `split_special_tokens` says."""
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "a": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["<unk>", "<s>"])
    encode = PromptEncoder(PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>"))
    assert encode("a <s>", parse_special_tokens=False) == [2, 0]
    assert encode("a <s>", parse_special_tokens=True) == [2, 1]


@settings(deadline=None)
@given(st.text(st.sampled_from("ab<s>/ué🙂 \n\0"), max_size=30))
@example("</s>" * 3)
def test_no_text_makes_a_control_token(text: str) -> None:
    for kind, tokenizer in TOKENIZERS.items():
        ids = ENCODERS[kind](text, parse_special_tokens=False)
        assert not {*ids} & {tokenizer.bos_token_id, tokenizer.eos_token_id}
        if tokenizer is TOKENIZER:
            assert ids == byte_ids(tokenizer, text.encode())
