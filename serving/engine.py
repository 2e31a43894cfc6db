"""The engine: one thread that owns the model and plays turns one after the other, in token ids.

A turn loads the committed session, works on a copy of its state, and commits once, when it has
ended. Whatever else happens (the client leaves, the model fails, the server stops) the session
stays the very object that it was.

    EngineError
        QueueFull       as many turns wait as may
        EngineStopped   the engine is not running, or stopped before the turn ended
        TurnAborted     the caller gave the turn up
        TurnFailed      the model failed during the turn
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from bmojo_neuron import BMojoForCausalLM
from bmojo_neuron.state import State, copy_state, not_finite
from serving.sampling import Sampler
from serving.sessions import Session, SessionStore

logger = logging.getLogger(__name__)

FinishReason = Literal["stop", "eos", "length"]


class EngineError(Exception):
    """A turn did not end; its session is unchanged."""


class QueueFull(EngineError):
    """As many turns wait as may."""


class EngineStopped(EngineError):
    """The engine is not running, or stopped before the turn ended."""


class TurnAborted(EngineError):
    """The caller gave the turn up."""


class TurnFailed(EngineError):
    """The model failed during the turn; the cause is in the log."""


@dataclass(frozen=True)
class TurnResult:
    """How a turn ended. resumed + prompt + generated tokens = tokens that the session holds now.

    Attributes:
        finish_reason: a stop string came, the model ended its text, or max_new_tokens was reached.
        resumed_tokens: tokens that the session held before, none of which was computed again.
        prompt_tokens: tokens of the prompt, with the one that opens a new text.
        tokens: sampled, the end-of-text token included.
        session: what was committed, None for a turn without session.
    """

    finish_reason: FinishReason
    resumed_tokens: int
    prompt_tokens: int
    tokens: Sequence[int]
    session: Session | None


@dataclass(eq=False)
class Turn:
    """One request to continue a session, or a text of its own.

    Attributes:
        prompt: token ids, at least one.
        max_new_tokens: at least 1.
        sampler: chooses the tokens.
        on_token: called in the engine thread with each sampled token but end-of-text; True ends
            the turn after this token.
        on_end: called in the engine thread once and last, with the result or with what went wrong.
        session_id: None plays the turn on a fresh state that nobody keeps.
        on_start: called in the engine thread once and first, with the tokens that the turn feeds
            before it samples.
        opens: a new text begins with the token that opens one, not with the prompt itself.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    sampler: Sampler
    on_token: Callable[[int], bool]
    on_end: Callable[[TurnResult | EngineError], None]
    session_id: str | None = None
    on_start: Callable[[Sequence[int]], None] = lambda _: None
    opens: bool = True
    cancelled: EngineError | None = field(default=None, init=False)


class Engine:
    """Owns the model; started and stopped by whoever made it.

    Args:
        model: in evaluation mode. From `start` on only the engine's thread may use it.
        store: where sessions are claimed, read and committed.
        bos: token that opens a new text, None if the model knows none.
        eos: tokens that end a text.
        max_waiting: turns that may wait while one is played.
        prefill_piece: prompt tokens fed between two looks at whether the turn was aborted.
    """

    def __init__(
        self,
        model: BMojoForCausalLM,
        store: SessionStore,
        *,
        bos: int | None,
        eos: frozenset[int],
        max_waiting: int,
        prefill_piece: int,
    ) -> None:
        self._model, self._store = model, store
        self._bos, self._eos = bos, eos
        self._max_waiting, self._prefill_piece = max_waiting, prefill_piece
        self._waiting: deque[Turn] = deque()
        self._running: Turn | None = None
        self._stopping = False
        self._changed = threading.Condition()  # guards the three above
        self._thread: threading.Thread | None = None

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self._model.config.vocab_size

    @property
    def alive(self) -> bool:
        """Whether turns are being played."""
        return self._thread is not None and self._thread.is_alive() and not self._stopping

    @property
    def turns(self) -> int:
        """Turns waiting or being played."""
        return len(self._waiting) + (self._running is not None)

    def start(self) -> None:
        """Begin to play turns."""
        assert self._thread is None, "an engine is started once"
        self._thread = threading.Thread(target=self._run, name="bmojo-engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End all turns with EngineStopped and wait for the thread to leave the model."""
        with self._changed:
            self._stopping = True
            if self._running is not None:
                self._running.cancelled = EngineStopped()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def check_admission(self) -> None:
        """Say early, before work is put into a prompt, what `submit` would say now.

        Raises:
            EngineStopped, QueueFull: see `submit`.
        """
        if not self.alive:
            raise EngineStopped
        if self.turns > self._max_waiting:
            raise QueueFull

    def submit(self, turn: Turn) -> None:
        """Claim the turn's session and put it in the queue; `on_end` is called once from then on.

        Raises:
            EngineStopped: the engine is not running.
            QueueFull: as many turns wait as may.
            SessionError: the session cannot be claimed.
        """
        if turn.session_id is not None:
            self._store.claim(turn.session_id)
        try:
            with self._changed:
                self.check_admission()
                self._waiting.append(turn)
                self._changed.notify()
        except EngineError:
            if turn.session_id is not None:
                self._store.release(turn.session_id)
            raise

    def abort(self, turn: Turn) -> None:
        """Give a turn up, wherever it stands; nothing happens if it has ended."""
        with self._changed:
            turn.cancelled = TurnAborted()
            waiting = turn in self._waiting
            if waiting:
                self._waiting.remove(turn)
        if waiting:
            self._end(turn, turn.cancelled)

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while (turn := self._next()) is not None:
                    self._end(turn, self._outcome(turn))
        finally:
            with self._changed:
                self._stopping = True
                left = (
                    [*self._waiting] if self._running is None else [self._running, *self._waiting]
                )
                self._waiting.clear()
            for turn in left:
                self._end(turn, EngineStopped())

    def _next(self) -> Turn | None:
        """The next turn, waiting for one; None when the engine is to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._waiting)
            if self._stopping:
                return None
            self._running = self._waiting.popleft()
            return self._running

    def _end(self, turn: Turn, outcome: TurnResult | EngineError) -> None:
        """Free what the turn held, then tell its caller, who may come back at once."""
        if turn.session_id is not None and isinstance(outcome, EngineError):
            self._store.release(turn.session_id)
        with self._changed:
            if turn is self._running:
                self._running = None
        turn.on_end(outcome)

    def _outcome(self, turn: Turn) -> TurnResult | EngineError:
        try:
            return self._play(turn)
        except EngineError as error:
            return error
        except Exception as error:
            logger.exception("a turn failed; its session is unchanged")
            failed = TurnFailed()
            failed.__cause__ = error
            return failed

    def _play(self, turn: Turn) -> TurnResult:
        session = None if turn.session_id is None else self._store.get(turn.session_id)
        if session is None:
            state = self._model.new_state(batch_size=1)
            opening = [self._bos] if turn.opens and self._bos is not None else []
            prompt = [*opening, *turn.prompt]
            unfed = prompt
        else:
            state = copy_state(session.state)
            prompt = list(turn.prompt)
            unfed = [*([] if session.pending is None else [session.pending]), *prompt]

        turn.on_start(unfed)
        for start in range(0, len(unfed), self._prefill_piece):
            logits, state = self._feed(turn, unfed[start : start + self._prefill_piece], state)
        generated: list[int] = []
        while True:
            token = turn.sampler(logits)
            generated.append(token)
            reason = self._judge(turn, token, len(generated))
            if reason is not None:
                break
            logits, state = self._feed(turn, [token], state)

        if broken := not_finite(state):
            raise ValueError(
                f"state: expected finite numbers, got inf or NaN in {', '.join(broken)}; the model "
                "or its weights are broken"
            )
        _check(turn)
        committed = None
        if turn.session_id is not None:
            committed = (
                Session.first(turn.session_id, state, pending=token)
                if session is None
                else session.next(state, pending=token)
            )
            self._store.commit(committed)
        return TurnResult(
            finish_reason=reason,
            resumed_tokens=0 if session is None else session.tokens,
            prompt_tokens=len(prompt),
            tokens=generated,
            session=committed,
        )

    def _feed(self, turn: Turn, tokens: list[int], state: State) -> tuple[Tensor, State]:
        """Logits (V,) after `tokens`, and the new state; the old one is given up."""
        _check(turn)
        ids = torch.tensor([tokens], dtype=torch.int64, device=self._model.device)
        logits, state = self._model.feed(ids, state, donate=True)
        return logits[0], state

    def _judge(self, turn: Turn, token: int, generated: int) -> FinishReason | None:
        """Why the turn ends with this token, None if it goes on."""
        if token in self._eos:
            return "eos"
        if turn.on_token(token):
            return "stop"
        return "length" if generated == turn.max_new_tokens else None


def end_tokens(model: BMojoForCausalLM) -> frozenset[int]:
    """The tokens that end a text: those of the generation config if it names any, else the
    config's, as in `generate` of transformers.
    """
    ids = None if model.generation_config is None else model.generation_config.eos_token_id
    if ids is None:
        ids = model.config.eos_token_id
    return frozenset(() if ids is None else [ids] if isinstance(ids, int) else ids)


def _check(turn: Turn) -> None:
    if turn.cancelled is not None:
        raise turn.cancelled
