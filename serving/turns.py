"""A turn as its request sees it: what the engine's thread reports, brought to asyncio as text."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar

from anyio import CancelScope
from fastapi import Request
from starlette.concurrency import run_in_threadpool

from bmojo_neuron.text import TextStream
from serving.engine import Engine, EngineError, Turn, TurnAborted, TurnResult
from serving.sampling import Sampler
from serving.schemas import GenerateRequest, TextDelta

Result = TypeVar("Result")


async def play(
    engine: Engine,
    request: Request,
    asked: GenerateRequest,
    prompt: list[int],
    text: TextStream | None,
) -> AsyncGenerator[TextDelta | TurnResult]:
    """Play one turn: yields what it says in deltas, then its result.

    The turn is aborted as soon as the client disconnects or this generator is closed.

    Args:
        request: its body has been read.
        prompt: token ids of the prompt.
        text: fresh; turns the tokens to text and stops at a stop string. None: there is no text.

    Raises:
        EngineError, SessionError: the turn did not begin, or did not end; nothing was committed.
    """
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[TextDelta | TurnResult | EngineError] = asyncio.Queue()
    told = 0  # tokens that are in deltas

    def delta(said: str, tokens: Sequence[int]) -> TextDelta | None:
        """None if there is nothing to tell."""
        if asked.in_ids and tokens:
            return TextDelta(text=None if text is None else said, token_ids=list(tokens))
        return TextDelta(text=said) if said else None

    def post(event: TextDelta | TurnResult | EngineError) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(events.put_nowait, event)

    def on_token(token: int) -> bool:
        nonlocal told
        told += 1
        if event := delta(text.push(token) if text else "", [token]):
            post(event)
        return text is not None and text.stopped

    turn = Turn(
        prompt,
        asked.max_new_tokens,
        Sampler(asked.temperature, asked.top_k, asked.top_p, asked.seed),
        on_token=on_token,
        on_end=post,
        session_id=asked.session_id,
        on_start=text.start if text else lambda _: None,
        opens=not asked.in_ids,
    )
    watch = asyncio.create_task(_on_disconnect(request, partial(engine.abort, turn)))
    try:
        await run_in_threadpool(engine.submit, turn)
        while isinstance(event := await events.get(), TextDelta):
            yield event
        if isinstance(event, EngineError):
            raise event
        if rest := delta(text.flush() if text else "", event.tokens[told:]):
            yield rest
        # Text that was held back may hold a stop string that no token completed before.
        yield replace(event, finish_reason="stop") if text and text.stopped else event
    finally:
        watch.cancel()
        engine.abort(turn)


async def while_connected(request: Request, work: Awaitable[Result]) -> Result:
    """What `work` comes to, waited for as long as the client stays.

    Args:
        request: its body has been read.

    Raises:
        TurnAborted: the client left first.
    """
    with CancelScope() as scope:
        watch = asyncio.create_task(_on_disconnect(request, scope.cancel))
        try:
            return await work
        finally:
            watch.cancel()
    raise TurnAborted


async def _on_disconnect(request: Request, call: Callable[[], object]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    call()
