import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from bmojo_neuron.state import StatePart
from serving.sessions import MemoryStore, Session, SessionBusy, StoreFull, _digest
from tests.server.conftest import PATIENCE, Start, tiny_model

PARTS = tiny_model().state_parts()


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


def file(state: Mapping[str, torch.Tensor] | None = None, **metadata: str) -> bytes:
    """A safetensors file with a session's metadata, some of it replaced."""
    whole = {"format": "bmojo-session-2", "session": "{}", "digest": ""} | metadata
    return save(dict(state or {"n": torch.zeros(1)}), whole)


@pytest.mark.parametrize("kind", ["bmojo", "bmojo_f", "mamba2", "transformer"])
@pytest.mark.parametrize("tokens", [0, 1, 40])
def test_bytes_and_back(kind: str, tokens: int) -> None:
    session = make("a", kind, tokens)
    session = session.next(session.state, pending=None) if tokens == 1 else session
    assert_same(Session.from_bytes(session.to_bytes(), tiny_model(kind).state_parts()), session)


def test_bytes_of_states_that_share_memory() -> None:
    whole = torch.arange(6.0).reshape(1, 2, 3)
    state = {"n": torch.ones(1, dtype=torch.int32), "x": whole, "y": whole.mT, "z": whole[:, 1:]}
    parts = [StatePart(name, tuple(x.shape[1:]), x.dtype) for name, x in state.items()]
    session = Session.first("a", state, pending=None)
    assert_same(Session.from_bytes(session.to_bytes(), parts), session)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected bytes from Session.to_bytes, got 0 bytes"),
        (b"\x80\x04K\x01.", "expected bytes from Session.to_bytes"),
        (b"\xff" * 64, "expected bytes from Session.to_bytes"),
        (save({"n": torch.zeros(1)}), "expected bytes from Session.to_bytes"),
        (save({"n": torch.zeros(1)}, {"session": "{}"}), "expected bytes from Session.to_bytes"),
        (
            file(format="bmojo-session-1"),
            "expected format 'bmojo-session-2', got 'bmojo-session-1'",
        ),
        (file(session="["), "session: Invalid JSON"),
        (file(session="[" * 9999), "session: "),
    ],
)
def test_other_bytes_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Session.from_bytes(data, PARTS)


def test_cut_bytes_are_refused() -> None:
    data = make("a").to_bytes()
    for size in (8, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(ValueError, match="expected bytes from"):
            Session.from_bytes(data[:size], PARTS)


def changed(session: Session, **fields: object) -> bytes:
    """Bytes of a session, true to the digest, whose metadata were then replaced."""
    data = session.to_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    old = json.loads(header["__metadata__"]["session"])
    text = json.dumps({name: x for name, x in (old | fields).items() if x != "drop"})
    return file(session.state, session=text, digest=_digest(text, session.state))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 0}, "version: Input should be greater than or equal to 1, got 0"),
        ({"version": "1"}, "version: Input should be a valid integer, got '1'"),
        ({"version": True}, "version: "),
        ({"pending": -1}, "pending: Input should be greater than or equal to 0, got -1"),
        ({"pending": 2**31}, "pending: "),
        ({"pending": 1.5}, "pending: "),
        ({"pending": "drop"}, "pending: Field required"),
        ({"pending": None}, "tokens: expected 40, as the state counts them, got 41"),
        ({"tokens": 42}, "tokens: expected 41, as the state counts them, got 42"),
        ({"tokens": -1}, "tokens: "),
        ({"id": ""}, "id: "),
        ({"id": 7}, "id: "),
        ({"created_at": "yesterday"}, "created_at: "),
        ({"updated_at": "2026-01-01T00:00:00"}, "updated_at: Input should have timezone info"),
        ({"updated_at": None}, "updated_at: "),
        ({"more": 1}, "more: Extra inputs are not permitted, got 1"),
    ],
)
def test_metadata_that_no_session_has_is_refused(fields: dict[str, object], message: str) -> None:
    session = make("a")
    assert_same(Session.from_bytes(changed(session), PARTS), session)
    with pytest.raises(ValueError, match=re.escape(message)):
        Session.from_bytes(changed(session, **fields), PARTS)


def with_part(kind: str, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> bytes:
    session = make("a", kind)
    state = session.state | {name: change(session.state[name].clone())}
    return replace(session, state=state).to_bytes()


def holds(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x.index_put_(tuple(torch.zeros(x.dim(), 1).long()), torch.tensor(value).to(x))


@pytest.mark.parametrize(
    ("kind", "name", "change", "message"),
    [
        ("bmojo", "layers.0.ssm", lambda x: x[:, 1:], "expected shape (1, 2, 16, 16), got (1, 1,"),
        ("bmojo", "layers.0.ssm", lambda x: x.repeat(2, 1, 1, 1), "got (2, 2, 16, 16)"),
        ("bmojo", "layers.0.ssm", lambda x: x.flatten(), "expected shape (1, 2, 16, 16), got (512"),
        ("bmojo", "layers.0.ssm", torch.Tensor.half, "expected torch.float32, got torch.float16"),
        ("bmojo", "layers.1.ssm", holds(float("nan")), "expected finite numbers, got inf or NaN"),
        ("bmojo", "layers.1.fading_v", holds(float("-inf")), "expected finite numbers"),
        ("bmojo", "layers.0.eidetic_position", holds(-2), "expected -1 to n = 40, got -2 to"),
        ("bmojo", "layers.0.eidetic_position", holds(41), "expected -1 to n = 40, got"),
        ("bmojo", "n", holds(-1), "expected 0 to n = -1, got -1 to -1"),
        ("bmojo", "n", torch.Tensor.long, "expected torch.int32, got torch.int64"),
        ("transformer", "n", lambda x: x + 2**20, "expected at most the capacity 256"),
        ("transformer", "layers.0.context_k", lambda x: x[:, :, :64], "expected shape (1, 2, 256"),
        ("transformer", "layers.1.context_v", lambda x: x[:, 0], "expected shape (1, 2, 256, 16)"),
    ],
)
def test_a_state_that_no_model_wrote_is_refused(
    kind: str, name: str, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    data, parts = with_part(kind, name, change), tiny_model(kind).state_parts()
    with pytest.raises(ValueError, match=re.escape(f"{name}: ") + ".*" + re.escape(message)):
        Session.from_bytes(data, parts)


def test_a_state_of_another_model_is_refused() -> None:
    for there, here, part in [("bmojo", "mamba2", "more"), ("mamba2", "bmojo", "none")]:
        with pytest.raises(
            ValueError, match=r"layers\.\d\.\w+: expected .* got (none|one)"
        ) as told:
            Session.from_bytes(make("a", there).to_bytes(), tiny_model(here).state_parts())
        assert ("got none" in str(told.value)) == (part == "none")


SESSION = make("a")
BYTES = SESSION.to_bytes()
HEADER = 8 + int.from_bytes(BYTES[:8], "little")


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, HEADER + 40) | st.integers(0, len(BYTES) - 1), st.integers(0, 255)
        ),
        max_size=3,
    ),
    st.none() | st.integers(0, len(BYTES)),
)
def test_changed_bytes_are_refused_or_say_the_same(
    flips: list[tuple[int, int]], size: int | None
) -> None:
    data = bytearray(BYTES)
    for place, byte in flips:
        data[place] = byte
    try:
        session = Session.from_bytes(bytes(data[:size]), PARTS)
    except ValueError:
        assert data[:size] != BYTES
    else:
        assert_same(session, SESSION)


def test_next_version() -> None:
    first = make("a")
    second = first.next(first.state, pending=None)
    assert (first.version, first.tokens) == (1, 41)
    assert (second.version, second.tokens) == (2, 40)
    assert second.created_at == first.created_at <= second.updated_at


def test_longest_unused_session_is_dropped() -> None:
    store = MemoryStore(max_sessions=2, max_resident=2, parts=PARTS)
    put(store, make("a"), make("b"))
    store.claim("a")
    store.release("a")
    put(store, make("c"))
    assert [name for name in "abc" if store.get(name)] == ["a", "c"]
    assert len(store) == 2


def test_claimed_session_is_never_dropped() -> None:
    store = MemoryStore(max_sessions=2, max_resident=0, parts=PARTS)
    put(store, make("a"), make("b"))
    store.claim("a")
    put(store, make("c"))
    assert [name for name in "abc" if store.get(name)] == ["a", "c"]
    store.release("a")
    put(store, make("d"))
    assert [name for name in "abcd" if store.get(name)] == ["a", "d"] or len(store) == 2


def test_longest_unused_session_stays_while_it_is_claimed() -> None:
    store = MemoryStore(max_sessions=2, max_resident=1, parts=PARTS)
    sessions: Mapping[str, Session] = {name: make(name) for name in "abc"}
    put(store, sessions["a"])
    store.claim("a")
    put(store, sessions["b"], sessions["c"])
    assert store.get("a") is sessions["a"]
    assert [name for name in "abc" if store.get(name)] == ["a", "c"]


def test_claims() -> None:
    store = MemoryStore(max_sessions=2, max_resident=2, parts=PARTS)
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
    store = MemoryStore(max_sessions=9, max_resident=1, parts=PARTS)
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

    store = MemoryStore(max_sessions=9, max_resident=1, parts=PARTS)
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
    store = MemoryStore(max_sessions=9, max_resident=0, parts=PARTS)
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
    assert server.http.get("/healthz").json() == {
        "status": "ok",
        "turns": 0,
        "sessions": 2,
        "tokenizer": True,
    }
    response = server.http.delete("/sessions/b")
    assert (response.status_code, response.content) == (204, b"")
    for method in ("GET", "DELETE"):
        response = server.http.request(method, "/sessions/b")
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "session_not_found"
    again = server.generate("Hello", session_id="b", max_new_tokens=3).json()
    assert again["session"]["version"] == 1
    assert again["usage"]["resumed_tokens"] == 0
