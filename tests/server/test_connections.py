"""How connections end: no body is read in vain, and every answer has our shape, uvicorn's too."""

import json
import socket
import time
from collections.abc import Iterator

import pytest

from serving.app import create_app
from serving.settings import Settings
from tests.server.conftest import (
    PATIENCE,
    Control,
    Running,
    Start,
    byte_ids,
    byte_tokenizer,
    run_server,
    tiny_model,
)
from tests.server.test_aborts import NEXT
from tests.server.test_errors import HEAD, receive

LARGE = b"Content-Length: 5000000000\r\n\r\n"
EARLY = {
    "unknown route": (404, b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\n"),
    "wrong method": (405, b"PUT /healthz HTTP/1.1\r\nHost: localhost\r\n"),
    "body too large": (413, HEAD),
    "foreign host": (403, HEAD.replace(b"localhost", b"evil.example")),
    "wrong type": (415, HEAD.replace(b"json", b"xml")),
    "a success": (200, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"),
}
early = pytest.mark.parametrize(("status", "head"), EARLY.values(), ids=EARLY.keys())


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    model = tiny_model()
    control = Control(model)
    app = create_app(Settings(port=0), model=model, tokenizer=byte_tokenizer())
    with run_server(app, control) as running:
        assert running.generate("Hello", session_id="a", max_new_tokens=1).status_code == 200
        yield running


def connect(server: Running) -> socket.socket:
    return socket.create_connection(server.address, timeout=PATIENCE)


def read_until(connection: socket.socket, end: bytes) -> bytes:
    got = b""
    while end not in got:
        piece = connection.recv(65536)
        assert piece, got
        got += piece
    return got


def shaped(answer: bytes, status: int, code: str) -> None:
    """One whole answer of our shape."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"content-type: application/json" in head.lower()
    assert b"connection: close" in head.lower()
    assert f"content-length: {len(body)}".encode() in head.lower()
    error = json.loads(body)["error"]
    assert error.keys() == {"code", "message", "param", "expected", "got"}
    assert error["code"] == code
    assert error["message"]


@early
def test_a_body_that_is_never_read_is_not_taken(server: Running, status: int, head: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(head + LARGE)
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        with pytest.raises(OSError, match=r"reset|pipe"):
            connection.sendall(b"x" * 50_000_000)  # more than the system's buffers hold


@early
@pytest.mark.parametrize("ends", [True, False])
def test_an_answer_arrives_before_its_connection_is_closed(
    server: Running, status: int, head: bytes, ends: bool
) -> None:
    how = b"Connection: close\r\n" if ends else b""
    with connect(server) as connection:
        began = time.monotonic()
        connection.sendall(head + how + LARGE + b"x" * 30_000)
        time.sleep(0.1)
        connection.sendall(b"x" * 30_000)  # a reset, if the first ones were dropped
        answer = receive(connection)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert time.monotonic() - began < 5
    assert server.generate("a", max_new_tokens=1).status_code == 200


@pytest.mark.parametrize(
    ("status", "head"), [case for name, case in EARLY.items() if name != "body too large"]
)
def test_a_short_body_that_is_not_read_keeps_its_connection(
    server: Running, status: int, head: bytes
) -> None:
    with connect(server) as connection:
        connection.sendall(head + b"Content-Length: 1000\r\n\r\n")
        assert read_until(connection, b"}").startswith(b"HTTP/1.1 %d " % status)
        connection.sendall(b"x" * 1000 + NEXT)
        read_until(connection, b"HTTP/1.1 200 ")


def test_a_body_that_stops_coming_ends_its_connection(server: Running) -> None:
    with connect(server) as connection:
        connection.sendall(EARLY["unknown route"][1] + LARGE)
        began = time.monotonic()
        assert receive(connection).startswith(b"HTTP/1.1 404 ")
        assert 0.5 < time.monotonic() - began < 4


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"nonsense\r\n\r\n", 400, "invalid_http"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "invalid_http"),  # TLS
        (b"GET / HTTP/1.1\r\n\r\n", 400, "invalid_http"),  # without Host
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400, "invalid_http"),
        (HEAD + b"Transfer-Encoding: gzip\r\n\r\n", 501, "invalid_http"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400, "invalid_http"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000, 431, "head_too_large"),
        (b"GET /" + b"x" * 70_000, 431, "head_too_large"),
    ],
    ids=["nonsense", "TLS", "no host", "length", "coding", "chunk", "header", "target"],
)
def test_what_is_no_http_is_answered_in_our_shape(
    server: Running, sent: bytes, status: int, code: str
) -> None:
    with connect(server) as connection:
        connection.sendall(sent)
        shaped(receive(connection), status, code)


def test_a_late_line_end_is_answered_in_our_shape(server: Running) -> None:
    with connect(server) as connection:
        connection.sendall(NEXT)
        read_until(connection, b'"tokenizer":true}')
        connection.sendall(b"\r\n")
        shaped(receive(connection), 400, "invalid_http")


def test_a_body_that_breaks_after_its_answer_ends_the_connection(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(server) as connection:
        connection.sendall(EARLY["unknown route"][1] + b"Transfer-Encoding: chunked\r\n\r\n")
        read_until(connection, b"}}")
        connection.sendall(b"xyz\r\n")
        assert receive(connection) == b""
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b'Content-Length: 99\r\n\r\n{"prompt"',
        HEAD + b"Content-Length: 99\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
    ],
    ids=["half", "none", "chunked"],
)
def test_half_a_request_ends_at_shutdown(
    start: Start, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    server = start(shutdown_timeout=8)
    with connect(server) as connection:
        connection.sendall(sent)
        while not server.server.server_state.tasks:
            time.sleep(0.005)
        began = time.monotonic()
        server.server.should_exit = True
        shaped(receive(connection), 503, "unavailable")
        server.thread.join(PATIENCE)
        assert time.monotonic() - began < 4
    assert [record for record in caplog.records if record.exc_info] == []


def test_half_a_head_ends_at_shutdown(start: Start) -> None:
    server = start(shutdown_timeout=8)
    with connect(server) as connection:
        connection.sendall(HEAD)
        while not server.server.server_state.connections:
            time.sleep(0.005)
        began = time.monotonic()
        server.server.should_exit = True
        assert receive(connection) == b""
        server.thread.join(PATIENCE)
        assert time.monotonic() - began < 4


def test_a_client_that_does_not_read_is_cut_off_at_shutdown(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    server = start(shutdown_timeout=0)
    large = b"GET /static-offline-docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(large * 50)
        deadline = time.monotonic() + PATIENCE
        while not any(one.flow.write_paused for one in server.server.server_state.connections):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        began = time.monotonic()
        server.server.should_exit = True
        server.thread.join(PATIENCE)
        assert time.monotonic() - began < 4
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/sessions/a", "GET, HEAD, DELETE"),
        ("/healthz", "GET, HEAD"),
        ("/generate", "POST"),
        ("/docs", "GET, HEAD"),
        ("/openapi.json", "GET, HEAD"),
        ("/static-offline-docs/swagger-ui.css", "GET, HEAD"),
    ],
)
@pytest.mark.parametrize("method", ["PUT", "PATCH", "OPTIONS", "BREW"])
def test_allow_lists_every_method_of_the_path(
    server: Running, method: str, path: str, allowed: str
) -> None:
    response = server.http.request(method, path)
    assert response.status_code == 405
    assert response.headers["allow"] == allowed
    assert response.json()["error"]["message"].endswith(f"expected the method {allowed}")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        *[("/healthz", 200), ("/docs", 200), ("/openapi.json", 200), ("/sessions/a", 200)],
        *[("/sessions/none", 404), ("/nowhere", 404), ("/generate", 405)],
    ],
)
def test_head_is_get_without_its_body(server: Running, path: str, status: int) -> None:
    got, head = server.http.get(path), server.http.head(path)
    assert head.status_code == got.status_code == status
    assert head.content == b""
    assert {**head.headers, "date": ""} == {**got.headers, "date": ""}
    with connect(server) as connection:
        connection.sendall(f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() + NEXT)
        both = read_until(connection, b'"turns"')
        assert b"\r\n\r\nHTTP/1.1 200 " in both, "no byte of a body stands between the two answers"


def test_head_on_a_probe_tells_when_no_turns_are_taken(start: Start) -> None:
    server = start()
    server.service.engine.stop()
    assert server.http.head("/healthz").status_code == 503


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_in_the_rest_is_the_reason(start: Start, stream: bool) -> None:
    """Half a character at the end of a turn comes out as U+FFFD, and not before."""
    server = start()
    ids = byte_ids(server.service.tokenizer, b"ab\xc3")
    server.control.script = list(ids)
    answer = server.generate("x", max_new_tokens=3, stop=["\ufffd"], stream=stream)
    if stream:
        events = [line.removeprefix("data: ") for line in answer.text.split("\n\n")]
        found = [json.loads(event) for event in events if event.startswith("{")]
        text, last = "".join(event["text"] for event in found), found[-1]
    else:
        last = answer.json()
        text = last["text"]
    assert text == "ab"
    assert last["finish_reason"] == "stop"
