"""A turn that does not end leaves its session exactly as it was, and the engine free."""

import json
import socket
import struct
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch

from serving.engine import EngineError, Turn, TurnAborted, TurnResult
from serving.sampling import Sampler
from serving.sessions import Session
from tests.server.conftest import PATIENCE, Running, Start
from tests.server.test_sessions import assert_same


def committed(server: Running) -> Session:
    """Session "a" after a first turn: the object in the store, and what it must stay."""
    assert server.generate("Hello", session_id="a", max_new_tokens=5).status_code == 200
    session = server.service.store.get("a")
    assert session is not None
    server.control.fed.clear()
    parts = server.service.engine._model.state_parts()
    return Session.from_bytes(session.to_bytes(), parts)


def assert_unchanged(server: Running, before: Session) -> None:
    """Nor does the session's next turn notice what happened."""
    server.control.release()
    server.wait_until_idle()
    assert_same(server.service.store.get("a"), before)
    server.control.fed.clear()
    answer = server.generate("x", session_id="a", max_new_tokens=1).json()
    assert answer["session"] == {"id": "a", "version": 2, "tokens": before.tokens + 2}
    assert server.control.fed[0][0] == before.pending


def post(server: Running, further: bytes = b"", head: str = "", **fields: object) -> socket.socket:
    """Send a request, and `further` bytes after it; do not wait for the answer."""
    body = json.dumps({"session_id": "a", "max_new_tokens": 40, **fields}).encode()
    lines = [
        *("POST /generate HTTP/1.1", "Host: localhost", "Content-Type: application/json"),
        *(f"Content-Length: {len(body)}", *filter(None, [head])),
    ]
    connection = socket.create_connection(server.address)
    connection.sendall("".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body + further)
    return connection


@pytest.mark.parametrize("calls", [1, 2, 17, 40])
def test_client_leaves_a_stream(start: Start, calls: int) -> None:
    server = start(prefill_piece=1)  # single tokens are what the model writes in place
    before = committed(server)
    server.control.hold(after=calls - 1)
    with post(server, prompt="more", stream=True):
        server.control.wait_for_calls(calls)
    assert_abort_is_noticed(server, calls)
    assert_unchanged(server, before)


@pytest.mark.parametrize("calls", [1, 17])
def test_client_leaves_without_stream(start: Start, calls: int) -> None:
    server = start()
    before = committed(server)
    server.control.hold(after=calls - 1)
    with post(server, prompt="more"):
        server.control.wait_for_calls(calls)
    assert_abort_is_noticed(server, calls)
    assert_unchanged(server, before)


NEXT = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "further"),
    [
        *[("", more) for more in (b"", b"\r\n", NEXT, b"x" * 50_000)],
        *[(f"Connection: {how}", b"\r\n") for how in ("close", "Upgrade\r\nUpgrade: h2c")],
    ],
    ids=["nothing", "line end", "next request", "much", "line end, closed", "line end, upgraded"],
)
@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("way", ["close", "reset", "half"])
def test_every_way_of_leaving_counts(
    start: Start, head: str, further: bytes, late: bool, way: str
) -> None:
    server = start()
    before = committed(server)
    server.control.hold()
    with post(server, b"" if late else further, head, prompt="more") as connection:
        server.control.wait_for_calls(1)
        if late and further:
            connection.sendall(further)
            # Apart from what follows: uvicorn must have read these bytes when it comes.
            threading.Event().wait(0.05)
        if way == "half":
            connection.shutdown(socket.SHUT_WR)
            assert_abort_is_noticed(server, calls=1)
        elif way == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if way != "half":
        assert_abort_is_noticed(server, calls=1)
    assert_unchanged(server, before)


def test_a_client_that_does_not_stop_sending_is_cut_off(start: Start) -> None:
    server = start()
    before = committed(server)
    server.control.hold()
    with post(server, prompt="more") as connection:
        server.control.wait_for_calls(1)
        with pytest.raises(OSError, match=r"reset|pipe"):
            connection.sendall(b"x" * 50_000_000)
        assert_abort_is_noticed(server, calls=1)
    assert_unchanged(server, before)


@pytest.mark.parametrize("late", [True, False])
def test_the_next_request_is_answered_after_this_one(start: Start, late: bool) -> None:
    server = start()
    server.control.hold()
    with post(server, b"" if late else NEXT, prompt="more") as connection:
        server.control.wait_for_calls(1)
        if late:
            connection.sendall(NEXT)
        server.control.release()
        connection.settimeout(PATIENCE)
        got = b""
        while b'"turns"' not in got:
            piece = connection.recv(4096)
            assert piece, got
            got += piece
    assert got.count(b"HTTP/1.1 200 OK") == 2
    assert server.http.get("/sessions/a").json()["version"] == 1


@pytest.mark.parametrize("stream", [False, True])
def test_client_leaves_during_prefill(start: Start, stream: bool) -> None:
    server = start(prefill_piece=8)
    before = committed(server)
    server.control.hold(after=1)
    with post(server, prompt="long" * 20, stream=stream):
        server.control.wait_for_calls(2)
    assert_abort_is_noticed(server, calls=2)
    assert_unchanged(server, before)


def assert_abort_is_noticed(server: Running, calls: int) -> None:
    """The call that runs while the client leaves is the turn's last one."""
    running = server.service.engine._running
    assert running is not None
    for _ in range(int(PATIENCE / 2 / 0.005)):
        if running.cancelled is not None:
            break
        threading.Event().wait(0.005)
    assert isinstance(running.cancelled, TurnAborted)
    server.control.release()
    server.wait_until_idle()
    assert len(server.control.fed) == calls


def test_turn_is_aborted_at_its_last_token(start: Start) -> None:
    server = start()
    before = committed(server)
    engine = server.service.engine
    tokens: list[int] = []
    outcome: Future[TurnResult | EngineError] = Future()

    def on_token(token: int) -> bool:
        tokens.append(token)
        if len(tokens) == 3:
            engine.abort(turn)
        return False

    turn = Turn([1], 3, Sampler(), on_token, outcome.set_result, session_id="a")
    engine.submit(turn)
    assert isinstance(outcome.result(PATIENCE), TurnAborted)
    assert len(tokens) == 3
    assert_unchanged(server, before)


def test_client_leaves_the_queue(start: Start) -> None:
    server = start()
    before = committed(server)
    server.control.hold()
    with post(server, prompt="other", session_id="b"):
        server.control.wait_for_calls(1)
        with post(server, prompt="more"):
            while server.service.engine.turns < 2:
                threading.Event().wait(0.005)
        while server.service.engine.turns > 1:
            threading.Event().wait(0.005)
        server.control.release()
        server.wait_until_idle()
    assert server.service.store.get("b") is not None
    assert_unchanged(server, before)


def test_first_turn_that_is_aborted_leaves_no_session(start: Start) -> None:
    server = start()
    server.control.hold()
    with post(server, prompt="more"):
        server.control.wait_for_calls(1)
        assert server.http.get("/sessions/a").status_code == 404
    assert_abort_is_noticed(server, calls=1)
    assert server.http.get("/sessions/a").status_code == 404
    assert server.http.get("/healthz").json() == {
        "status": "ok",
        "turns": 0,
        "sessions": 0,
        "tokenizer": True,
    }


@pytest.mark.parametrize("broken", [RuntimeError("secret"), KeyError(0)])
def test_model_fails(start: Start, broken: Exception) -> None:
    server = start()
    before = committed(server)
    server.control.error = broken
    for stream in (False, True):
        response = server.generate("more", session_id="a", stream=stream)
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "turn_failed"
        assert "secret" not in response.text
    server.control.error = None
    assert_unchanged(server, before)


def test_model_fails_within_a_stream(start: Start) -> None:
    server = start()
    before = committed(server)
    server.control.script = [65] * 9
    server.control.hold(after=3)
    with server.http.stream(
        "POST", "/generate", json={"prompt": "more", "session_id": "a", "stream": True}
    ) as response:
        assert response.status_code == 200
        server.control.wait_for_calls(4)
        server.control.error = RuntimeError("secret")
        server.control.release()
        response.read()
    *_, name, data = response.text.strip().splitlines()
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"]["code"] == "turn_failed"
    assert "secret" not in response.text
    server.control.error = None
    server.control.script = []
    assert_unchanged(server, before)


def test_nan_is_never_committed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start()
    before = committed(server)
    weight = server.service.engine._model.lm_head.weight
    kept = weight.detach().clone()
    weight.data.fill_(float("nan"))
    assert server.generate("more", session_id="a").json()["error"]["code"] == "turn_failed"
    weight.data.copy_(kept)
    assert_unchanged(server, before)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("poison", [float("inf"), float("nan")])
def test_a_state_that_is_not_finite_is_never_committed(
    start: Start, caplog: pytest.LogCaptureFixture, first: bool, poison: float
) -> None:
    """Fading outputs enter the state now and are read a window later: the logits show nothing."""
    server = start()
    before = None if first else committed(server)
    model = server.service.engine._model
    [*_, weight] = [
        w for name, w in model.named_parameters() if name.endswith("mixer.out_proj.weight")
    ]
    kept = weight.detach().clone()
    weight.data.fill_(poison)
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.inference_mode():
        logits, state = model.feed(ids, model.new_state())
    assert logits.isfinite().all()
    assert not state["layers.1.fading_v"].isfinite().all()

    answer = server.generate("more", session_id="a", max_new_tokens=1).json()
    assert answer["error"]["code"] == "turn_failed"
    assert "got inf or NaN in layers.1." in caplog.text
    assert "layers.1.fading_v" in caplog.text
    weight.data.copy_(kept)
    if before is None:
        assert server.http.get("/sessions/a").status_code == 404
        assert server.generate("more", session_id="a", max_new_tokens=1).status_code == 200
    else:
        assert_unchanged(server, before)


def test_second_turn_of_a_session(start: Start) -> None:
    server = start()
    committed(server)
    server.control.hold()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(server.generate, "more", session_id="a", max_new_tokens=3)
        server.control.wait_for_calls(1)
        for response in (
            server.generate("again", session_id="a"),
            server.generate("again", session_id="a", stream=True),
            server.http.delete("/sessions/a"),
        ):
            assert response.status_code == 409
            assert response.json()["error"]["code"] == "session_busy"
            assert response.headers["retry-after"] == "1"
        assert server.http.get("/sessions/a").json()["version"] == 1
        server.control.release()
        assert first.result().json()["session"]["version"] == 2
    assert server.generate("again", session_id="a").json()["session"]["version"] == 3


def test_turns_wait_for_each_other(start: Start) -> None:
    server = start(max_queued_turns=1)
    server.control.hold()
    with ThreadPoolExecutor() as pool:
        turns = [pool.submit(server.generate, "a", session_id="0", max_new_tokens=2)]
        server.control.wait_for_calls(1)
        turns.append(pool.submit(server.generate, "a", session_id="1", max_new_tokens=2))
        while server.service.engine.turns < 2:
            threading.Event().wait(0.005)
        full = server.generate("a", session_id="2")
        assert full.status_code == 503
        assert full.json()["error"]["code"] == "queue_full"
        assert full.headers["retry-after"] == "1"
        assert server.http.get("/healthz").json()["turns"] == 2
        server.control.release()
        answers = [turn.result().json() for turn in turns]
    assert answers[0]["text"] == answers[1]["text"]
    assert server.generate("a", session_id="2").status_code == 200


def test_every_session_is_busy(start: Start) -> None:
    server = start(max_sessions=1)
    committed(server)
    server.control.hold()
    with ThreadPoolExecutor() as pool:
        turn = pool.submit(server.generate, "a", session_id="a", max_new_tokens=2)
        server.control.wait_for_calls(1)
        full = server.generate("a", session_id="b")
        assert full.status_code == 429
        assert full.json()["error"]["code"] == "sessions_full"
        assert full.headers["retry-after"] == "1"
        server.control.release()
        assert turn.result().json()["session"]["version"] == 2
    assert server.generate("a", session_id="b").status_code == 200
    assert server.http.get("/sessions/a").status_code == 404


@pytest.mark.parametrize("stream", [True, False])
def test_shutdown_ends_turns_that_last(start: Start, stream: bool) -> None:
    server = start(shutdown_timeout=0, max_new_tokens=100_000)
    before = committed(server)
    server.control.script = [65] * 100_000
    how = {"max_new_tokens": 100_000, "stream": stream}
    with ThreadPoolExecutor() as pool:
        turns = [pool.submit(server.generate, "more", session_id=name, **how) for name in "ab"]
        server.control.wait_for_calls(20)
        server.server.should_exit = True
        answers = [turn.result() for turn in turns]
    first = answers[0].text if server.control.fed[0][0] == before.pending else answers[1].text
    assert ("event: error\ndata: " in first) == stream
    assert "[DONE]" not in first
    for answer in answers:
        assert '"unavailable"' in answer.text
        assert (answer.status_code == 503) == (not answer.text.startswith("data: "))
    server.thread.join(PATIENCE)
    assert not server.thread.is_alive()
    assert not server.service.engine.alive
    assert "bmojo-engine" not in {thread.name for thread in threading.enumerate()}
    assert server.service.store.get("b") is None
    assert_same(server.service.store.get("a"), before)


def test_shutdown_waits_for_turns_that_end(start: Start) -> None:
    server = start()
    server.control.hold(after=2)
    with ThreadPoolExecutor() as pool:
        turn = pool.submit(server.generate, "more", session_id="a", max_new_tokens=9, stream=True)
        server.control.wait_for_calls(3)
        server.server.should_exit = True
        threading.Event().wait(0.2)
        server.control.release()
        assert turn.result().text.endswith("data: [DONE]\n\n")
    server.thread.join(PATIENCE)
    assert server.service.store.get("a") is not None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_engine_dies(start: Start) -> None:
    server = start()
    committed(server)
    server.control.error = SystemExit("the thread is gone")
    response = server.generate("more", session_id="a")
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "unavailable"
    for response in (server.http.get("/healthz"), server.generate("more")):
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "unavailable"
    assert server.http.get("/sessions/a").json()["version"] == 1


def test_a_long_prompt_does_not_block_the_server(start: Start) -> None:
    """Neither its tokens nor its prefill: other requests are answered meanwhile."""
    server = start(prefill_piece=4096)
    with ThreadPoolExecutor() as pool:
        turn = pool.submit(server.generate, "long " * 400, max_new_tokens=1)
        server.control.wait_for_calls(1)
        answers = 0
        while not turn.done():
            assert server.http.get("/healthz").status_code == 200
            answers += 1
        assert turn.result().status_code == 200
    assert answers > 3
