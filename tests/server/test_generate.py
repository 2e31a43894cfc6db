import json
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from bmojo_neuron import BMojoForCausalLM
from serving.app import create_app
from serving.settings import Settings
from tests.model.pieces import USER, sentencepiece
from tests.server.conftest import (
    Control,
    Running,
    Start,
    byte_ids,
    byte_tokenizer,
    run_server,
    tiny_model,
)

BOS, EOS = 256, 257


def events(response: httpx.Response) -> list[str]:
    """Data of each server-sent event; checks that there is nothing else in the body."""
    chunks = response.text.split("\n\n")
    assert chunks.pop() == ""
    assert all(chunk.startswith("data: ") and "\n" not in chunk for chunk in chunks)
    return [chunk.removeprefix("data: ") for chunk in chunks]


def greedy(model: BMojoForCausalLM, tokens: Sequence[int], count: int) -> list[int]:
    """The next tokens, each from one run over the whole text from its beginning."""
    out: list[int] = []
    with torch.inference_mode():
        while len(out) < count:
            logits, _ = model.feed(torch.tensor([[*tokens, *out]]), model.new_state())
            out.append(int(logits.argmax()))
    return out


def test_answer(start: Start, tokenizer: PreTrainedTokenizerFast) -> None:
    server = start()
    answer = server.generate("Hello", max_new_tokens=5, session_id="a").json()
    prompt = [BOS, *byte_ids(tokenizer, b"Hello")]
    assert answer == {
        "text": tokenizer.decode(greedy(tiny_model(), prompt, 5)),
        "finish_reason": "length",
        "usage": {"prompt_tokens": 6, "resumed_tokens": 0, "generated_tokens": 5},
        "session": {"id": "a", "version": 1, "tokens": 11},
    }


def test_stream_says_what_the_answer_says(start: Start) -> None:
    server = start()
    whole = server.generate("Hello", max_new_tokens=20, session_id="a").json()
    response = server.generate("Hello", max_new_tokens=20, session_id="b", stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    *deltas, last, done = events(response)
    assert done == "[DONE]"
    assert all(json.loads(delta).keys() == {"text"} for delta in deltas)
    assert "".join(json.loads(delta)["text"] for delta in deltas) == whole["text"]
    assert json.loads(last) == {
        **whole,
        "text": "",
        "session": {"id": "b", "version": 1, "tokens": 26},
    }


def test_without_session_nothing_is_kept(start: Start) -> None:
    server = start()
    answers = [server.generate("Hello", max_new_tokens=4).json() for _ in range(2)]
    assert answers[0] == answers[1]
    assert answers[0]["session"] is None
    assert len(server.service.store) == 0


@pytest.mark.parametrize("kind", ["bmojo", "bmojo_f", "mamba2", "transformer"])
def test_turns_equal_one_text(start: Start, tokenizer: PreTrainedTokenizerFast, kind: str) -> None:
    """However a text is cut into turns, each token is the one that a single run would choose."""
    server = start(kind, prefill_piece=7, max_resident_sessions=0)
    text = [BOS]
    for turn, (prompt, count) in enumerate([("a", 1), ("bc" * 20, 9), ("d", 17), ("e" * 7, 2)], 1):
        answer = server.generate(prompt, max_new_tokens=count, session_id="a").json()
        held = 0 if turn == 1 else len(text)
        text += byte_ids(tokenizer, prompt.encode())
        said = greedy(tiny_model(kind), text, count)
        assert answer["text"] == tokenizer.decode(said, skip_special_tokens=True)
        assert answer["usage"] == {
            "prompt_tokens": len(text) - held,
            "resumed_tokens": held,
            "generated_tokens": len(said),
        }
        text += said
        assert answer["session"] == {"id": "a", "version": turn, "tokens": len(text)}
    fed = [token for call in server.control.fed for token in call]
    assert fed == text[:-1], "every token is fed once, in order, but the last, which is pending"
    session = server.service.store.get("a")
    assert session is not None
    assert session.pending == text[-1]
    with torch.inference_mode():
        model = tiny_model(kind)
        _, whole = model.feed(torch.tensor([text[:-1]]), model.new_state())
    assert session.state["n"].tolist() == [len(text) - 1]
    for name, tensor in whole.items():
        if kind != "transformer":  # its capacity depends on how it grew
            torch.testing.assert_close(session.state[name], tensor, rtol=1e-4, atol=1e-4)


def test_seed_makes_draws_repeatable(start: Start) -> None:
    server = start()
    how = {"temperature": 1.0, "max_new_tokens": 24}

    def draw(**fields: object) -> str:
        return str(server.generate("Hello", **how, **fields).json()["text"])

    torch.manual_seed(1)
    first = draw(seed=7)
    torch.manual_seed(2)
    assert draw(seed=7) == first, "the global generator plays no part"
    assert len({first, draw(seed=8), draw(), draw()}) == 4
    likely = str(server.generate("Hello", max_new_tokens=24).json()["text"])
    assert draw(seed=7, top_k=1) == likely
    assert draw(seed=7, top_p=1e-9) == likely


def script(server: Running, tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    server.control.script = byte_ids(tokenizer, text.encode())


@pytest.mark.parametrize("stream", [False, True])
def test_stop_string_across_tokens(
    start: Start, tokenizer: PreTrainedTokenizerFast, stream: bool
) -> None:
    server = start()
    script(server, tokenizer, "one en two end three")
    response = server.generate(
        "Hello", session_id="a", stop=["zzz", "end"], max_new_tokens=20, stream=stream
    )
    if stream:
        *deltas, last = map(json.loads, events(response)[:-1])
        answer = last | {"text": "".join(delta["text"] for delta in deltas)}
    else:
        answer = response.json()
    assert answer["text"] == "one en two "
    assert answer["finish_reason"] == "stop"
    assert answer["usage"]["generated_tokens"] == len("one en two end")
    assert answer["session"]["tokens"] == 6 + len("one en two end")
    session = server.service.store.get("a")
    assert session is not None
    assert tokenizer.decode([session.pending]) == "d"


def test_end_of_text(start: Start, tokenizer: PreTrainedTokenizerFast) -> None:
    server = start()
    script(server, tokenizer, "ok")
    server.control.script.append(EOS)
    answer = server.generate("Hello", session_id="a").json()
    assert (answer["text"], answer["finish_reason"]) == ("ok", "eos")
    assert answer["usage"]["generated_tokens"] == 3
    server.control.fed.clear()
    server.generate("!", session_id="a", max_new_tokens=1)
    assert server.control.fed == [[EOS, *byte_ids(tokenizer, b"!")]]


def test_text_that_looks_like_an_event(start: Start, tokenizer: PreTrainedTokenizerFast) -> None:
    """Line ends of the model's text cannot break out of the event that carries them."""
    server = start()
    said = 'a\n\ndata: [DONE]\r\n\r\nevent: error\u2028"'
    script(server, tokenizer, said)
    response = server.generate("Hello", max_new_tokens=len(said.encode()), stream=True)
    *deltas, _, done = events(response)
    assert "".join(json.loads(delta)["text"] for delta in deltas) == said
    assert done == "[DONE]"


def test_lines_of_a_stream_are_whole_to_every_reader(
    start: Start, tokenizer: PreTrainedTokenizerFast
) -> None:
    """str.splitlines, which httpx and others read with, knows more line ends than the standard."""
    server = start()
    said = "".join(c for c in map(chr, range(0x3000)) if len(f"a{c}b".splitlines()) > 1)
    assert {"\x85", "\u2028", "\u2029"} < {*said}
    script(server, tokenizer, said)
    asked = {"prompt": "Hello", "max_new_tokens": len(said.encode()), "stream": True}
    with server.http.stream("POST", "/generate", json=asked) as response:
        lines = [line for line in response.iter_lines() if line]
    *deltas, _, done = [line.removeprefix("data: ") for line in lines]
    assert "".join(json.loads(delta)["text"] for delta in deltas) == said
    assert done == "[DONE]"


def test_names_of_special_tokens_in_a_prompt_are_text(
    start: Start, tokenizer: PreTrainedTokenizerFast
) -> None:
    server = start()
    server.generate("a<eos>b", max_new_tokens=1)
    server.generate("a<eos>b", max_new_tokens=1, parse_special_tokens=True)
    a, b = byte_ids(tokenizer, b"ab")
    assert server.control.fed == [
        [BOS, *byte_ids(tokenizer, b"a<eos>b")],
        [BOS, a, EOS, b],
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_the_first_space_of_an_answer_is_kept(stream: bool) -> None:
    """Each turn continues the text before it, which a decoder of a whole text cannot know."""
    tokenizer = sentencepiece("bpe")
    model = tiny_model(vocab_size=len(tokenizer))
    control = Control(model)
    app = create_app(Settings(port=0), model=model, tokenizer=tokenizer)
    a, b = tokenizer.convert_tokens_to_ids(["▁a", "▁b"])
    with run_server(app, control) as server:
        for prompt, special in (("a", False), (USER, True)):
            control.script = [b, a]
            response = server.generate(
                prompt,
                session_id="a",
                max_new_tokens=2,
                stream=stream,
                parse_special_tokens=special,
            )
            said = [json.loads(event)["text"] for event in events(response)[:-1]] if stream else []
            assert ("".join(said) if stream else response.json()["text"]) == " b a"


def end_ids(path: Path, config: int | None, generation: int | list[int] | None) -> Path:
    """A model's directory that says so in its two files."""
    model = tiny_model()
    model.config.eos_token_id = config
    model.generation_config.eos_token_id = generation
    model.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [
        (EOS, [EOS, 65], {EOS, 65}),
        (EOS, 65, {65}),
        (EOS, None, {EOS}),
        (None, [65, 66], {65, 66}),
        (None, None, set()),
    ],
)
def test_every_end_of_the_generation_config_ends_a_text(
    tmp_path: Path, config: int | None, generation: int | list[int] | None, ends: set[int]
) -> None:
    path = end_ids(tmp_path, config, generation)
    app = create_app(Settings(port=0, model_path=path))
    control = Control(app.state.service.engine._model)
    with run_server(app, control) as server:
        for token in (65, 66, EOS):
            control.script = [67, token, 67]
            answer = server.generate("Hello", max_new_tokens=3).json()
            wanted = ("eos", 2) if token in ends else ("length", 3)
            assert (answer["finish_reason"], answer["usage"]["generated_tokens"]) == wanted


def test_sessions_do_not_mix(start: Start) -> None:
    server = start()
    alone = [server.generate(p, session_id="x", max_new_tokens=6).json() for p in ("aa", "bb")]
    for prompt, expected in zip(("aa", "bb"), alone, strict=True):
        for name in ("y", "z"):
            answer = server.generate(prompt, session_id=name, max_new_tokens=6).json()
            assert answer["text"] == expected["text"]
            assert answer["usage"] == expected["usage"]
            server.generate("noise" * 9, session_id=f"noise-{name}", max_new_tokens=3)
