"""Prompts as token ids: of any model, and the only ones of a model without a tokenizer."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from transformers import PreTrainedTokenizerFast

from bmojo_neuron.text import TextStream
from serving.app import create_app
from serving.settings import Settings
from tests.server.conftest import Control, Running, Start, byte_ids, run_server, tiny_model
from tests.server.test_generate import BOS, EOS, events, greedy

IDS = [72, 1, 257, 30]


@pytest.fixture
def mute(tmp_path: Path) -> Iterator[Running]:
    """A server of a directory that holds no tokenizer."""
    tiny_model().save_pretrained(tmp_path)
    app = create_app(Settings(port=0, model_path=tmp_path, max_prompt_tokens=30))
    with run_server(app, Control(app.state.service.engine._model)) as server:
        yield server


def ask(server: Running, ids: object, **fields: object) -> httpx.Response:
    return server.http.post("/generate", json={"prompt_token_ids": ids, **fields})


def test_a_server_without_a_tokenizer_says_so(
    mute: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert mute.http.get("/healthz").json()["tokenizer"] is False
    with caplog.at_level(logging.WARNING, "serving.app"):
        create_app(Settings(port=0, model_path=tmp_path))
    [said] = [r.getMessage() for r in caplog.records if "tokenizer" in r.getMessage()]
    assert said == "the model has no tokenizer: prompts are token ids (prompt_token_ids)"


def test_ids_are_answered_in_ids(mute: Running) -> None:
    expected = greedy(tiny_model(), IDS, 5)
    assert ask(mute, IDS, max_new_tokens=5, session_id="a").json() == {
        "text": None,
        "token_ids": expected,
        "finish_reason": "length",
        "usage": {"prompt_tokens": 4, "resumed_tokens": 0, "generated_tokens": 5},
        "session": {"id": "a", "version": 1, "tokens": 9},
    }
    more = ask(mute, [5, 6], max_new_tokens=3, session_id="a").json()
    assert more["token_ids"] == greedy(tiny_model(), [*IDS, *expected, 5, 6], 3)
    assert more["usage"]["resumed_tokens"] == 9


@pytest.mark.parametrize("ends", [False, True])
def test_a_stream_of_ids_adds_up_to_the_answer(mute: Running, ends: bool) -> None:
    script = [7, 200, 8, *([EOS] if ends else [9])]
    mute.control.script = [*script]
    whole = ask(mute, IDS, max_new_tokens=4).json()
    mute.control.script = [*script]
    *deltas, last, done = events(ask(mute, IDS, max_new_tokens=4, stream=True))
    assert done == "[DONE]"
    assert [json.loads(delta) for delta in deltas] == [
        {"text": None, "token_ids": [token]} for token in script
    ]
    assert whole["token_ids"] == script
    assert whole["finish_reason"] == ("eos" if ends else "length")
    assert whole["usage"]["generated_tokens"] == 4
    assert json.loads(last) == whole | {"token_ids": []}


def test_ids_are_taken_as_they_are_and_answered_in_text_too(
    start: Start, tokenizer: PreTrainedTokenizerFast
) -> None:
    server = start()
    assert server.http.get("/healthz").json()["tokenizer"] is True
    ids = byte_ids(tokenizer, b"Hello")
    answer = ask(server, ids, max_new_tokens=6).json()
    assert server.control.fed[0] == ids
    assert answer["token_ids"] == greedy(tiny_model(), ids, 6)
    text = TextStream(tokenizer)
    text.start(ids)
    assert answer["text"] == "".join(map(text.push, answer["token_ids"])) + text.flush()
    opened = ask(server, [BOS, *ids], max_new_tokens=6).json()
    assert opened["text"] == server.generate("Hello", max_new_tokens=6).json()["text"]
    assert "token_ids" not in server.generate("Hello", max_new_tokens=6).json()


def test_a_stop_string_ends_an_answer_in_ids(
    start: Start, tokenizer: PreTrainedTokenizerFast
) -> None:
    server = start()
    said = byte_ids(tokenizer, b"one en two end")
    for stream in (False, True):
        server.control.script = [*said, *byte_ids(tokenizer, b" three")]
        response = ask(server, IDS, stop=["end"], max_new_tokens=20, stream=stream)
        bodies = events(response)[:-1] if stream else [response.text]
        parts = [json.loads(body) for body in bodies]
        assert "".join(part["text"] for part in parts) == "one en two "
        assert [token for part in parts for token in part["token_ids"]] == said
        assert parts[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("fields", "param", "expected", "got"),
    [
        ({"prompt_token_ids": [1, 258]}, "prompt_token_ids.1", "a token id from 0 to 257", "258"),
        ({"prompt_token_ids": [-1]}, "prompt_token_ids.0", "a token id from 0 to 257", "-1"),
        ({"prompt_token_ids": [10**30]}, "prompt_token_ids.0", "a token id from 0", str(10**30)),
        ({"prompt_token_ids": []}, "prompt_token_ids", "List should have at least 1 item", "[]"),
        ({"prompt_token_ids": [True]}, "prompt_token_ids.0", "a valid integer", "true"),
        ({"prompt_token_ids": [1.0]}, "prompt_token_ids.0", "a valid integer", "1.0"),
        ({"prompt_token_ids": ["1"]}, "prompt_token_ids.0", "a valid integer", '"1"'),
        ({"prompt_token_ids": "1 2"}, "prompt_token_ids", "a valid list", '"1 2"'),
        ({"prompt_token_ids": [1] * 31}, "prompt_token_ids", "at most 30 tokens", "31 tokens"),
        ({"prompt_token_ids": [1], "prompt": "a"}, "prompt", "none beside prompt_token_ids", ""),
        (
            {"prompt_token_ids": [1], "parse_special_tokens": True},
            *("parse_special_tokens", "false with prompt_token_ids", "true"),
        ),
        (
            {"prompt_token_ids": [1], "stop": ["a"]},
            *("stop", "none, as the model has no tokenizer", '["a"]'),
        ),
        ({"prompt": "a"}, "prompt", "none, as the model has no tokenizer", "a text"),
        ({"prompt_token_ids": None}, "prompt", "a value, it is required", "none"),
    ],
    ids=str,
)
def test_what_cannot_be_taken_is_refused_by_name(
    mute: Running, fields: dict[str, object], param: str, expected: str, got: str
) -> None:
    response = mute.http.post("/generate", json=fields)
    body = response.json()["error"]
    assert (response.status_code, body["code"], body["param"]) == (400, "invalid_argument", param)
    assert body["expected"].startswith(expected)
    assert body["got"].startswith(got)
    assert mute.control.fed == []


def test_a_text_for_a_model_without_a_tokenizer_is_told_the_way_out(mute: Running) -> None:
    message = mute.generate("Hello").json()["error"]["message"]
    assert "send prompt_token_ids, or put the tokenizer's files beside the model's" in message
