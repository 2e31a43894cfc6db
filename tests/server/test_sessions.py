import threading
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save

from serving.sessions import MemoryStore, Session, SessionBusy, StoreFull
from tests.server.conftest import PATIENCE, Start, tiny_model


def make(name: str, kind: str = "bmojo", tokens: int = 40) -> Session:
    model = tiny_model(kind)
    ids = torch.arange(tokens).remainder(250).unsqueeze(0)
    with torch.inference_mode():
        _, state = model.feed(ids, model.new_state()) if tokens else (None, model.new_state())
    return Session.first(name, state, pending=7)


def assert_same(one: Session | None, other: Session | None) -> None:
    """Equal in every field and every bit of every tensor."""
    assert one is not None
    assert other is not None
    assert replace(one, state={}).__dict__ == replace(other, state={}).__dict__
    assert one.state.keys() == other.state.keys()
    for name, tensor in one.state.items():
        assert (tensor.dtype, tensor.shape) == (other.state[name].dtype, other.state[name].shape)
        assert torch.equal(tensor, other.state[name]), name


def put(store: MemoryStore, *sessions: Session) -> None:
    for session in sessions:
        store.claim(session.id)
        store.commit(session)


@pytest.mark.parametrize("kind", ["bmojo", "bmojo_f", "mamba2", "transformer"])
@pytest.mark.parametrize("tokens", [0, 1, 40])
def test_bytes_and_back(kind: str, tokens: int) -> None:
    session = make("a", kind, tokens)
    session = session.next(session.state, pending=None) if tokens == 1 else session
    assert_same(Session.from_bytes(session.to_bytes()), session)


def test_bytes_of_states_that_share_memory() -> None:
    whole = torch.arange(6.0).reshape(1, 2, 3)
    state = {"n": torch.ones(1, dtype=torch.int32), "x": whole, "y": whole.mT, "z": whole[:, 1:]}
    session = Session.first("a", state, pending=None)
    assert_same(Session.from_bytes(session.to_bytes()), session)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected bytes from Session.to_bytes, got 0 bytes"),
        (b"\x80\x04K\x01.", "expected bytes from Session.to_bytes"),
        (b"\xff" * 64, "expected bytes from Session.to_bytes"),
        (save({"n": torch.zeros(1)}), "expected bytes from Session.to_bytes"),
        (save({"n": torch.zeros(1)}, {"session": "{}"}), "expected format 'bmojo-session-1'"),
        (save({"n": torch.zeros(1)}, {"session": "["}), "expected bytes from Session.to_bytes"),
    ],
)
def test_other_bytes_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Session.from_bytes(data)


def test_cut_bytes_are_refused() -> None:
    data = make("a").to_bytes()
    for size in (8, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(ValueError, match="expected bytes from"):
            Session.from_bytes(data[:size])


def test_next_version() -> None:
    first = make("a")
    second = first.next(first.state, pending=None)
    assert (first.version, first.tokens) == (1, 41)
    assert (second.version, second.tokens) == (2, 40)
    assert second.created_at == first.created_at <= second.updated_at


def test_longest_unused_session_is_dropped() -> None:
    store = MemoryStore(max_sessions=2, max_resident=2)
    put(store, make("a"), make("b"))
    store.claim("a")
    store.release("a")
    put(store, make("c"))
    assert [name for name in "abc" if store.get(name)] == ["a", "c"]
    assert len(store) == 2


def test_claimed_session_is_never_dropped() -> None:
    store = MemoryStore(max_sessions=2, max_resident=0)
    put(store, make("a"), make("b"))
    store.claim("a")
    put(store, make("c"))
    assert [name for name in "abc" if store.get(name)] == ["a", "c"]
    store.release("a")
    put(store, make("d"))
    assert [name for name in "abcd" if store.get(name)] == ["a", "d"] or len(store) == 2


def test_longest_unused_session_stays_while_it_is_claimed() -> None:
    store = MemoryStore(max_sessions=2, max_resident=1)
    sessions: Mapping[str, Session] = {name: make(name) for name in "abc"}
    put(store, sessions["a"])
    store.claim("a")
    put(store, sessions["b"], sessions["c"])
    assert store.get("a") is sessions["a"]
    assert [name for name in "abc" if store.get(name)] == ["a", "c"]


def test_claims() -> None:
    store = MemoryStore(max_sessions=2, max_resident=2)
    store.claim("a")
    with pytest.raises(SessionBusy):
        store.claim("a")
    with pytest.raises(SessionBusy):
        store.delete("a")
    store.claim("b")
    with pytest.raises(StoreFull):
        store.claim("c")
    store.release("a")
    store.claim("c")
    assert len(store) == 0


def test_sessions_beyond_the_resident_ones_become_bytes() -> None:
    store = MemoryStore(max_sessions=9, max_resident=1)
    sessions: Mapping[str, Session] = {name: make(name) for name in "abc"}
    put(store, *sessions.values())
    assert store.get("c") is sessions["c"]
    for name in "ab":
        assert store.get(name) is not sessions[name]
        assert_same(store.get(name), sessions[name])


def test_commit_stands_whatever_happens_to_the_session_that_makes_room(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Session) -> bytes:
        raise MemoryError("no room for a copy")

    store = MemoryStore(max_sessions=9, max_resident=1)
    sessions: Mapping[str, Session] = {name: make(name) for name in "ab"}
    with monkeypatch.context() as patch:
        patch.setattr(Session, "to_bytes", broken)
        put(store, *sessions.values())
    for name in "ab":
        assert store.get(name) is sessions[name]
        store.claim(name)
    assert "session 'a' could not be turned into bytes" in caplog.text


@pytest.mark.parametrize("deleted", [False, True])
def test_store_is_open_while_a_session_becomes_bytes(
    monkeypatch: pytest.MonkeyPatch, deleted: bool
) -> None:
    store = MemoryStore(max_sessions=9, max_resident=0)
    first = make("a")
    second = first.next(first.state, pending=None)
    to_bytes = Session.to_bytes
    unhindered: list[bool] = []

    def meanwhile(session: Session) -> bytes:
        if session is first:
            change = (store.delete, "a") if deleted else (put, store, second)
            other = threading.Thread(target=change[0], args=change[1:], daemon=True)
            other.start()
            other.join(PATIENCE)
            unhindered.append(not other.is_alive())
        return to_bytes(session)

    monkeypatch.setattr(Session, "to_bytes", meanwhile)
    put(store, first)
    assert unhindered == [True]
    if deleted:
        assert store.get("a") is None
    else:
        assert_same(store.get("a"), second)


@pytest.mark.parametrize("kind", ["bmojo", "transformer"])
def test_turns_do_not_notice_that_a_session_was_away(start: Start, kind: str) -> None:
    here, away = start(kind), start(kind, max_resident_sessions=0)
    for prompt in ("Hello", "you" * 20, "there"):
        answers = [
            server.generate(prompt, session_id="a", max_new_tokens=9).json()
            for server in (here, away)
        ]
        assert answers[0] == answers[1]
    times = {"created_at": None, "updated_at": None}
    stayed, returned = here.service.store.get("a"), away.service.store.get("a")
    assert stayed is not None
    assert returned is not None
    assert_same(replace(stayed, **times), replace(returned, **times))


def test_http(start: Start) -> None:
    server = start(max_sessions=2, max_resident_sessions=1)
    for name in "abc":
        server.generate("Hello", session_id=name, max_new_tokens=3)
    assert server.http.get("/sessions/a").status_code == 404, "evicted"
    for name in "bc":
        session = server.service.store.get(name)
        assert session is not None
        assert server.http.get(f"/sessions/{name}").json() == {
            "id": name,
            "version": 1,
            "tokens": 9,
            "bytes": sum(t.nbytes for t in session.state.values()),
            "bytes_by_part": {part: t.nbytes for part, t in session.state.items()},
            "created_at": session.created_at.isoformat().replace("+00:00", "Z"),
            "updated_at": session.updated_at.isoformat().replace("+00:00", "Z"),
        }
    assert server.http.get("/healthz").json() == {"status": "ok", "turns": 0, "sessions": 2}
    response = server.http.delete("/sessions/b")
    assert (response.status_code, response.content) == (204, b"")
    for method in ("GET", "DELETE"):
        response = server.http.request(method, "/sessions/b")
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "session_not_found"
    again = server.generate("Hello", session_id="b", max_new_tokens=3).json()
    assert again["session"]["version"] == 1
    assert again["usage"]["resumed_tokens"] == 0
