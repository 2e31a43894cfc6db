import json
import socket
import threading
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import suppress

import httpx
import pytest
from pydantic_core import from_json
from transformers import PreTrainedTokenizerFast

from bmojo_neuron.text import PromptEncoder
from serving.app import create_app
from serving.errors import APIError
from serving.routes import parse
from serving.settings import Settings
from tests.server.conftest import (
    PATIENCE,
    Control,
    Running,
    Start,
    byte_tokenizer,
    run_server,
    tiny_model,
)

HEAD = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
LIMITS = {"max_prompt_tokens": 30, "max_new_tokens": 64, "max_body_bytes": 5000}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    model = tiny_model()
    control = Control(model)
    app = create_app(Settings(port=0, **LIMITS), model=model, tokenizer=byte_tokenizer())
    with run_server(app, control) as running:
        yield running


def post(server: Running, content: str | bytes | Iterator[bytes]) -> httpx.Response:
    headers = {"content-type": "application/json"}
    return server.http.post("/generate", content=content, headers=headers)


def error(response: httpx.Response, status: int, code: str) -> dict[str, str]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.json().keys() == {"error"}
    body: dict[str, str] = response.json()["error"]
    assert body.keys() == {"code", "message", "param", "expected", "got"}
    assert body["code"] == code
    return body


@pytest.mark.parametrize(
    ("fields", "param", "expected", "got"),
    [
        ({}, "prompt", "a value, it is required", "none"),
        ({"prompt": ""}, "prompt", "String should have at least 1 character", '""'),
        ({"prompt": None}, "prompt", "a value, it is required", "none"),
        ({"prompt": ["a"]}, "prompt", "a valid string", '["a"]'),
        ({"prompt": 7}, "prompt", "a valid string", "7"),
        ({"prompt": "a" * 31}, "prompt", "at most 30 tokens", "31 tokens"),
        (
            {"max_tokens": 5},
            "max_tokens",
            "one of the fields prompt, prompt_token_ids",
            "an unknown",
        ),
        ({"max_new_tokens": 0}, "max_new_tokens", "greater than or equal to 1", "0"),
        ({"max_new_tokens": -1}, "max_new_tokens", "greater than or equal to 1", "-1"),
        ({"max_new_tokens": 65}, "max_new_tokens", "at most 64", "65"),
        ({"max_new_tokens": "64"}, "max_new_tokens", "a valid integer", '"64"'),
        ({"max_new_tokens": True}, "max_new_tokens", "a valid integer", "true"),
        ({"max_new_tokens": 1.5}, "max_new_tokens", "a valid integer", "1.5"),
        ({"max_new_tokens": None}, "max_new_tokens", "a valid integer", "null"),
        ({"max_new_tokens": 10**30}, "max_new_tokens", "at most 64", str(10**30)),
        ({"stream": "yes"}, "stream", "a valid boolean", '"yes"'),
        ({"stream": 1}, "stream", "a valid boolean", "1"),
        ({"temperature": float("nan")}, "temperature", "", "NaN"),
        ({"temperature": float("inf")}, "temperature", "", "Infinity"),
        ({"temperature": -0.1}, "temperature", "greater than or equal to 0", "-0.1"),
        ({"temperature": 2.1}, "temperature", "less than or equal to 2", "2.1"),
        ({"temperature": "0"}, "temperature", "a valid number", '"0"'),
        ({"top_p": 0}, "top_p", "greater than 0", "0"),
        ({"top_p": 1.1}, "top_p", "less than or equal to 1", "1.1"),
        ({"top_p": float("nan")}, "top_p", "", "NaN"),
        ({"top_k": 0}, "top_k", "greater than or equal to 1", "0"),
        ({"seed": -1}, "seed", "greater than or equal to 0", "-1"),
        ({"seed": 2**63}, "seed", "less than 9223372036854775808", str(2**63)),
        ({"stop": "end"}, "stop", "a valid list", '"end"'),
        ({"stop": [""]}, "stop.0", "String should have at least 1 character", '""'),
        ({"stop": ["a"] * 5}, "stop", "List should have at most 4 items", '["a", "a"'),
        ({"stop": ["a" * 257]}, "stop.0", "String should have at most 256 characters", '"aaa'),
        ({"session_id": ""}, "session_id", "String should match pattern", '""'),
        ({"session_id": "a b"}, "session_id", "String should match pattern", '"a b"'),
        ({"session_id": "a\n"}, "session_id", "String should match pattern", '"a\\n"'),
        ({"session_id": "a/b"}, "session_id", "String should match pattern", '"a/b"'),
        ({"session_id": ".."}, "session_id", "String should match pattern", '".."'),
        ({"session_id": "é"}, "session_id", "String should match pattern", '"é"'),
        ({"session_id": "a" * 129}, "session_id", "String should match pattern", '"aaa'),
        ({"session_id": 7}, "session_id", "a valid string", "7"),
    ],
)
def test_wrong_argument(
    server: Running, fields: dict[str, object], param: str, expected: str, got: str
) -> None:
    complete = fields if not fields or "prompt" in fields else {"prompt": "a", **fields}
    response = post(server, json.dumps(complete))
    body = error(response, 400, "invalid_argument")
    assert body["param"] == param
    assert body["expected"].startswith(expected)
    assert body["got"].startswith(got)
    assert len(body["got"]) < 100
    assert body["message"].startswith(f"{param}: expected {expected}")
    assert server.control.fed == []
    assert len(server.service.store) == 0


@pytest.mark.parametrize(
    ("body", "got"),
    [
        (b"", "EOF while parsing"),
        (b"{", "EOF while parsing"),
        (b"prompt=hello", "expected value"),
        (b'{"prompt": "\xff\xfe"}', "invalid unicode code point"),
        (b'{"prompt": "\xc3"}', "invalid unicode code point"),
        (b'{"prompt": "\\ud800 and more"}', "hex escape"),
        (b'{"prompt": "a\x00b"}', "control character"),
        (b'\xff\xfe{\x00"\x00', "expected value"),
        (b"[" * 3000, "recursion limit"),
        (b"[]", "[]"),
        (b'"hello"', '"hello"'),
        (b"null", "null"),
    ],
)
def test_body_that_is_no_request(server: Running, body: bytes, got: str) -> None:
    found = error(post(server, body), 400, "invalid_argument")
    assert found["param"] == "body"
    assert found["expected"] in ("JSON in UTF-8", "a JSON object")
    assert got in found["got"]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [5001, 200_000])
def test_large_body(server: Running, chunked: bool, size: int) -> None:
    whole = b'{"prompt": "' + b"a" * (size - 14) + b'"}'
    content = iter([whole[i : i + 999] for i in range(0, size, 999)]) if chunked else whole
    answer = post(server, content)
    assert answer.headers["connection"] == "close"
    assert error(answer, 413, "body_too_large")["expected"] == "at most 5000 bytes"


def test_largest_body(server: Running) -> None:
    whole = b'{"prompt": "' + b"a" * (5000 - 14) + b'"}'
    body = error(post(server, whole), 400, "invalid_argument")
    assert body["got"] == "4986 tokens"


@pytest.mark.parametrize(
    "fields",
    [f'"{"k" * 500_000}": 1', f'"{"é" * 250_000}": 1', f'"max_new_tokens": {"9" * 4000}'],
    ids=["name", "name beyond ASCII", "number"],
)
def test_an_answer_does_not_repeat_what_is_long(start: Start, fields: str) -> None:
    answer = post(start(), f'{{"prompt": "a", {fields}}}'.encode())
    error(answer, 400, "invalid_argument")
    assert len(answer.content) < 2000


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (b'"stop": [' + b"1," * 300_000 + b"1]", "stop.0"),
        (b'"stop": [' + b'"",' * 300_000 + b'""]', "stop.0"),
        (b'"stop": [' + b'"a",' * 200_000 + b'"a"]', "stop"),
        (b'"stop": [' + b",".join([b"9" * 4300] * 200) + b"]", "stop.0"),
        (b",".join(b'"k%d": 1' % i for i in range(90_000)), "k0"),
        (b'"top_k": {' + b",".join(b'"k%d": 1' % i for i in range(90_000)) + b"}", "top_k"),
        (b'"top_k": [' + b"1," * 400_000 + b"1]", "top_k"),
        (b'"top_k": ' + b"[" * 190 + b"]" * 190, "top_k"),
        (b'"prompt_token_ids": [' + b'"",' * 300_000 + b'""]', "prompt_token_ids.0"),
    ],
    ids=[
        *("numbers in stop", "empty strings in stop", "strings in stop", "long numbers in stop"),
        *("unknown fields", "object for number", "array for number", "deep for number"),
        "strings for token ids",
    ],
)
def test_refusing_json_costs_little_more_than_reading_it(fields: bytes, param: str) -> None:
    body = b'{"prompt": "a", ' + fields + b"}"

    def refuse() -> None:
        with pytest.raises(APIError) as refused:
            parse(body)
        assert refused.value.body.error.param == param
        assert len(refused.value.body.error.message) < 500

    def fastest(work: Callable[[], object]) -> float:
        return min(timeit.repeat(work, number=1, repeat=3))

    assert fastest(refuse) < 3 * fastest(lambda: from_json(body)) + 0.02


def test_default_body_limit_follows_the_token_limit() -> None:
    assert Settings().body_limit == 16 * 32_768 + 16_384
    assert Settings(max_prompt_tokens=100).body_limit == 16 * 100 + 16_384
    assert Settings(max_body_bytes=7).body_limit == 7


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("name", ["a%20b", "%C3%A9", "a" * 129, ".hidden", "a%0A"])
def test_invalid_session_id_in_path(server: Running, method: str, name: str) -> None:
    response = server.http.request(method, f"/sessions/{name}")
    assert error(response, 400, "invalid_argument")["param"] == "session_id"


@pytest.mark.parametrize("path", ["/", "/generate/", "/sessions", "/sessions/a/b", "/v1/models"])
def test_unknown_route(server: Running, path: str) -> None:
    assert path in error(server.http.get(path), 404, "unknown_route")["message"]


@pytest.mark.parametrize("method", ["GET", "BREW" * 1000])
def test_long_unknown_route(server: Running, method: str) -> None:
    for path in ("/" + "a" * 10_000, "/healthz", "/sessions/" + "a" * 10_000):
        answer = server.http.request(method, path)
        assert len(answer.content) < 2000, answer.status_code


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/generate", "POST"), ("POST", "/healthz", "GET"), ("PUT", "/sessions/a", "GET")],
)
def test_wrong_method(server: Running, method: str, path: str, allowed: str) -> None:
    response = server.http.request(method, path)
    assert allowed in error(response, 405, "method_not_allowed")["message"]
    assert allowed in response.headers["allow"]


def test_client_that_leaves_while_it_sends(server: Running) -> None:
    with socket.create_connection(server.address) as connection:
        connection.sendall(HEAD + b"Content-Length: 99\r\n\r\n{")
    assert server.generate("a", max_new_tokens=1).status_code == 200
    server.control.fed.clear()


def receive(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    connection.settimeout(PATIENCE)
    return b"".join(iter(lambda: connection.recv(4096), b""))


@pytest.mark.parametrize("length", ["Content-Length: 99", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("drips", [False, True])
def test_client_that_sends_too_slowly(start: Start, length: str, drips: bool) -> None:
    server = start(body_timeout_s=0.5)
    with socket.create_connection(server.address) as connection:
        connection.sendall(HEAD + f"{length}\r\n\r\n".encode())
        began = time.monotonic()
        stop = threading.Event()

        def drip() -> None:
            with suppress(OSError):  # the server has closed the connection
                while not stop.wait(0.05):
                    connection.sendall(b" " if length.startswith("Content") else b"1\r\n \r\n")

        thread = threading.Thread(target=drip)
        if drips:
            thread.start()
        try:
            head, _, body = receive(connection).partition(b"\r\n\r\n")
        finally:
            stop.set()
            if drips:
                thread.join()
        assert 0.4 < time.monotonic() - began < PATIENCE / 2
    assert head.startswith(b"HTTP/1.1 408 ")
    assert json.loads(body)["error"]["code"] == "body_timeout"
    assert json.loads(body)["error"]["expected"] == "all of it within 0.5 s"
    assert server.generate("a", max_new_tokens=1).status_code == 200


def test_bug_in_a_route(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> list[int]:
        raise RuntimeError("secret")

    monkeypatch.setattr(PromptEncoder, "__call__", broken)
    assert "secret" not in error(server.generate("a"), 500, "internal_error")["message"]


def test_parts_that_do_not_fit(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="model: expected the tokenizer's model beside it"):
        create_app(Settings(), tokenizer=tokenizer)
    large = byte_tokenizer()
    large.add_tokens(["one", "more"])
    with pytest.raises(ValueError, match="at most the model's 258 tokens, got 260"):
        create_app(Settings(), model=tiny_model(), tokenizer=large)


def test_no_model_at_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BMOJO_MODEL_PATH", "/nowhere")
    with pytest.raises(ValueError, match="model_path: expected a directory with a model"):
        create_app(Settings())
