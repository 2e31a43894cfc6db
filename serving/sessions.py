"""Sessions: what a conversation has made of the model's state, and the store that keeps them.

Errors, all of them answers to a caller who may come again:

    SessionError
        SessionBusy     a turn of this session is running or waiting
        StoreFull       every place is taken by a session with a turn in progress
"""

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Protocol

import torch
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from bmojo_neuron.state import State, StatePart, check_state

logger = logging.getLogger(__name__)

_FORMAT = "bmojo-session-2"


class SessionError(Exception):
    """A session cannot be had now."""


class SessionBusy(SessionError):
    """Another turn of this session is running or waiting."""


class StoreFull(SessionError):
    """Every place is taken by a session with a turn in progress, so none can be evicted."""


class _Metadata(BaseModel):
    """A session's fields but its state, as JSON."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str = Field(min_length=1)
    version: int = Field(ge=1)
    pending: int | None = Field(ge=0, lt=2**31)
    tokens: int = Field(ge=0)
    created_at: AwareDatetime
    updated_at: AwareDatetime


@dataclass(frozen=True, eq=False)
class Session:
    """One committed version of a conversation. It is never changed: a turn makes the next one.

    Attributes:
        id: the caller's name for it.
        version: turns committed so far, from 1.
        state: the model's state after all tokens but the pending one, one row; see `StatePart`.
        pending: the last token sampled. The model has not consumed it yet: the next turn feeds it
            before its prompt.
        tokens: tokens that the session holds, the pending one included.
        created_at: when version 1 was committed, UTC.
        updated_at: when this version was committed, UTC.
    """

    id: str
    version: int
    state: State
    pending: int | None
    tokens: int
    created_at: datetime
    updated_at: datetime

    @classmethod
    def first(cls, session_id: str, state: State, pending: int | None) -> "Session":
        """Version 1, as a new session's first turn leaves it."""
        now = datetime.now(UTC)
        return cls(session_id, 1, state, pending, _count(state, pending), now, now)

    def next(self, state: State, pending: int | None) -> "Session":
        """The version after this one, as a turn leaves it."""
        return replace(
            self,
            version=self.version + 1,
            state=state,
            pending=pending,
            tokens=_count(state, pending),
            updated_at=datetime.now(UTC),
        )

    def bytes_by_part(self) -> dict[str, int]:
        """Size of every tensor of the state, by name."""
        return {name: t.numel() * t.element_size() for name, t in self.state.items()}

    def to_bytes(self) -> bytes:
        """The session as a safetensors file: the state's tensors by name, the rest as metadata."""
        names = _Metadata.model_fields
        text = _Metadata(**{name: getattr(self, name) for name in names}).model_dump_json()
        tensors = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in self.state.items()
        }
        digest = _digest(text, tensors)
        return save(tensors, {"format": _FORMAT, "session": text, "digest": digest})

    @classmethod
    def from_bytes(
        cls, data: bytes, parts: Sequence[StatePart], device: torch.device | str = "cpu"
    ) -> "Session":
        """What `to_bytes` wrote, with its state on `device`.

        Args:
            parts: of the model that is to continue it, from `state_parts`.

        Raises:
            ValueError: the bytes are cut, changed, foreign, of another format version, or hold the
                session of another model.
        """
        try:
            state = load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            found, text, digest = (
                header["__metadata__"][name] for name in ("format", "session", "digest")
            )
        except (SafetensorError, LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"data: expected bytes from Session.to_bytes, got {len(data)} bytes "
                f"that are none ({error})"
            ) from error
        if found != _FORMAT:
            raise ValueError(f"data: expected format {_FORMAT!r}, got {found!r}")
        try:
            meta = _Metadata.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(map(str, first["loc"])) or "session"
            got = repr(first["input"])[:80]
            raise ValueError(f"{name}: {first['msg']}, got {got}") from error
        check_state(state, parts, batch_size=1)
        if meta.tokens != (held := _count(state, meta.pending)):
            raise ValueError(
                f"tokens: expected {held}, as the state counts them, got {meta.tokens}"
            )
        if digest != _digest(text, state):
            raise ValueError("data: expected what Session.to_bytes wrote, got bytes changed since")
        state = {name: tensor.to(device) for name, tensor in state.items()}
        return cls(state=state, **meta.__dict__)


def _digest(text: str, tensors: State) -> str:
    """Of all that a session's bytes say, so that no change of theirs goes unnoticed."""
    digest = blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _count(state: State, pending: int | None) -> int:
    return int(state["n"][0]) + (pending is not None)


class SessionStore(Protocol):
    """Where sessions are kept between turns. Every method may be called from any thread.

    A turn claims its session, then ends in exactly one of `commit` and `release`.
    """

    def claim(self, session_id: str) -> None:
        """Reserve a session, known or new, for one turn; until it ends, nothing evicts it.

        Raises:
            SessionBusy: it is claimed already.
            StoreFull: there is no room that could be made for it.
        """

    def release(self, session_id: str) -> None:
        """End a claim and leave the session as it was."""

    def commit(self, session: Session) -> None:
        """End a claim and put `session` in the place of the version before it."""

    def get(self, session_id: str) -> Session | None:
        """The committed version, or None if there is none."""

    def delete(self, session_id: str) -> bool:
        """Forget a session; False if there is none.

        Raises:
            SessionBusy: it is claimed.
        """

    def __len__(self) -> int:
        """Sessions kept."""


class MemoryStore:
    """Keeps sessions in memory: the most recently used as tensors, further ones as bytes.

    Beyond `max_sessions` the longest unused idle session is dropped for good; beyond `max_resident`
    the longest unused idle one is turned into bytes, from which its next turn restores it exactly.

    Args:
        max_sessions: places, those of claimed new sessions included.
        max_resident: sessions kept as tensors on `device`.
        parts: of the model's state.
        device: where the model wants the state of a session that comes back from bytes.
    """

    def __init__(
        self,
        max_sessions: int,
        max_resident: int,
        parts: Sequence[StatePart],
        device: torch.device | str = "cpu",
    ) -> None:
        self._max_sessions, self._max_resident = max_sessions, max_resident
        self._parts, self._device = parts, device
        self._sessions: OrderedDict[str, Session | bytes] = OrderedDict()  # longest unused first
        self._claimed: set[str] = set()
        self._lock = threading.Lock()

    def claim(self, session_id: str) -> None:
        """See `SessionStore`."""
        with self._lock:
            if session_id in self._claimed:
                raise SessionBusy(session_id)
            if len(self._claimed) >= self._max_sessions:
                raise StoreFull(session_id)
            self._claimed.add(session_id)
            if session_id in self._sessions:
                self._sessions.move_to_end(session_id)

    def release(self, session_id: str) -> None:
        """See `SessionStore`."""
        with self._lock:
            self._claimed.discard(session_id)

    def commit(self, session: Session) -> None:
        """See `SessionStore`."""
        with self._lock:
            self._sessions[session.id] = session
            self._sessions.move_to_end(session.id)
            self._claimed.discard(session.id)
            for name in self._idle()[: max(0, len(self._sessions) - self._max_sessions)]:
                del self._sessions[name]
            idle = [self._sessions[name] for name in self._idle()]
            resident = [entry for entry in idle if isinstance(entry, Session)]
        # The turn is committed: making room for it neither fails it nor holds the lock.
        for longest_unused in resident[: max(0, len(resident) - self._max_resident)]:
            self._pack(longest_unused)

    def get(self, session_id: str) -> Session | None:
        """See `SessionStore`."""
        with self._lock:
            entry = self._sessions.get(session_id)
        if isinstance(entry, bytes):
            return Session.from_bytes(entry, self._parts, self._device)
        return entry

    def delete(self, session_id: str) -> bool:
        """See `SessionStore`."""
        with self._lock:
            if session_id in self._claimed:
                raise SessionBusy(session_id)
            return self._sessions.pop(session_id, None) is not None

    def __len__(self) -> int:
        """Sessions kept."""
        return len(self._sessions)

    def _pack(self, session: Session) -> None:
        """Keep a session as bytes, unless it has changed meanwhile or cannot be turned into any."""
        try:
            data = session.to_bytes()
        except Exception:
            logger.exception("session %r could not be turned into bytes; it stays", session.id)
            return
        with self._lock:
            if self._sessions.get(session.id) is session:
                self._sessions[session.id] = data

    def _idle(self) -> list[str]:
        return [name for name in self._sessions if name not in self._claimed]
