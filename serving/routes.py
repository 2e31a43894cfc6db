"""The routes: HTTP on one side, turns and sessions on the other."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Path, Request
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect
from transformers import PreTrainedTokenizerBase

from bmojo_neuron.text import PromptEncoder, TextStream
from serving.engine import Engine, EngineError, TurnResult
from serving.errors import (
    APIError,
    bad_request,
    echo,
    from_engine,
    invalid,
    session_not_found,
    shorten,
)
from serving.schemas import (
    SESSION_ID,
    GenerateRequest,
    GenerateResponse,
    HealthResponse,
    SessionRef,
    SessionResponse,
    TextDelta,
    Usage,
    error_responses,
)
from serving.sessions import SessionStore
from serving.settings import Settings
from serving.turns import play, while_connected

_TOKENIZING = 2  # prompts at a time: a long one takes a core for a second, and 100 bytes per byte
_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
# Line ends to many readers of lines (str.splitlines), though not to JSON or server-sent events.
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
_STREAM_EXAMPLE = """\
data: {"text":" silver"}

data: {"text":"","finish_reason":"length",\
"usage":{"prompt_tokens":12,"resumed_tokens":0,"generated_tokens":1},\
"session":{"id":"alice","version":1,"tokens":13}}

data: [DONE]

"""
_GENERATE_DOCS: dict[str, Any] = {
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": GenerateRequest.model_json_schema()}},
        }
    },
    "responses": {
        200: {
            "description": "One object, or with stream = true server-sent events: text deltas, "
            "then the object, then [DONE]. If the turn fails after the stream has begun, an "
            "event named error with the error's JSON ends it, without [DONE].",
            "content": {"text/event-stream": {"example": _STREAM_EXAMPLE}},
        },
        **error_responses(
            _400="An argument is missing, unknown, of the wrong type or out of range.",
            _408="The body did not come in time.",
            _409="Another turn of this session is in progress.",
            _413="The body is larger than the server takes.",
            _415="The body is not declared as application/json.",
            _429="Every session that can be kept has a turn in progress.",
            _500="The model failed; the session is unchanged.",
            _503="Too many turns wait, or the server is stopping.",
        ),
    },
}

SessionPath = Annotated[str, Path(pattern=SESSION_ID, description="The session's id.")]


@dataclass(frozen=True)
class Service:
    """The parts that the routes work with."""

    settings: Settings
    tokenizer: PreTrainedTokenizerBase | None
    encode: PromptEncoder | None
    engine: Engine
    store: SessionStore


def build_router(service: Service) -> APIRouter:
    """All routes, bound to the parts of one app."""
    router = APIRouter()
    settings, engine, store = service.settings, service.engine, service.store
    tokenizing = CapacityLimiter(_TOKENIZING)

    @router.post("/generate", response_model=GenerateResponse, tags=["turns"], **_GENERATE_DOCS)
    async def generate(request: Request) -> GenerateResponse | StreamingResponse:
        """Continue a text.

        With a `session_id` the model goes on where that session's last turn ended: only the new
        prompt is processed, whatever came before is in the session's state. A turn counts when it
        has ended. If you disconnect, or it fails, the session stays exactly as it was.
        """
        asked = parse(await read_body(request, settings.body_limit, settings.body_timeout_s))
        engine.check_admission()
        work = to_thread.run_sync(tokenize, service, asked, limiter=tokenizing)
        prompt = await while_connected(request, work)
        text = TextStream(service.tokenizer, asked.stop) if service.tokenizer else None
        nothing = TextDelta(text="" if text else None, token_ids=[] if asked.in_ids else None)
        events = play(engine, request, asked, prompt, text)
        if asked.stream:
            # The first event decides the status: before it, errors are ordinary responses.
            first = await anext(events)
            return StreamingResponse(
                stream(first, events, nothing),
                media_type="text/event-stream",
                headers=_STREAM_HEADERS,
            )
        async with aclosing(events):
            deltas = [nothing]
            async for event in events:
                if isinstance(event, TurnResult):
                    return answer(joined(deltas), event)
                deltas.append(event)
        raise AssertionError("a turn ends with its result")

    @router.get(
        "/sessions/{session_id}",
        tags=["sessions"],
        responses=error_responses(_400="The id is malformed.", _404="No such session is kept."),
    )
    def get_session(session_id: SessionPath) -> SessionResponse:
        """What is kept of a session, as its last committed turn left it."""
        session = store.get(session_id)
        if session is None:
            raise session_not_found(session_id)
        parts = session.bytes_by_part()
        return SessionResponse(
            id=session.id,
            version=session.version,
            tokens=session.tokens,
            bytes=sum(parts.values()),
            bytes_by_part=parts,
            created_at=session.created_at,
            updated_at=session.updated_at,
        )

    @router.delete(
        "/sessions/{session_id}",
        status_code=204,
        tags=["sessions"],
        responses=error_responses(
            _400="The id is malformed.",
            _404="No such session is kept.",
            _409="A turn of this session is in progress.",
        ),
    )
    async def delete_session(session_id: SessionPath) -> None:
        """Forget a session. Its id can be used again, for a new one."""
        if not store.delete(session_id):
            raise session_not_found(session_id)

    @router.get(
        "/healthz", tags=["operation"], responses=error_responses(_503="It cannot take turns.")
    )
    async def healthz() -> HealthResponse:
        """Whether the model is loaded and its engine takes turns."""
        if not engine.alive:
            raise APIError(503, "unavailable", "the engine is not running")
        return HealthResponse(
            turns=engine.turns, sessions=len(store), tokenizer=service.tokenizer is not None
        )

    return router


async def read_body(request: Request, limit: int, seconds: float) -> bytes:
    """The body, declared as JSON, never more than `limit` bytes.

    Raises:
        APIError: it is declared as something else, which a web page could send without asking its
            browser, is too large, takes longer than `seconds`, or the client left while sending it.
    """
    kind = request.headers.get("content-type", "none")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise APIError(
            415,
            "unsupported_media_type",
            f"content-type: expected application/json, got {shorten(kind)}; curl --json sends it",
            param="content-type",
            expected="application/json",
            got=shorten(kind),
        )
    too_large = APIError(
        413,
        "body_too_large",
        f"body: expected at most {limit} bytes, got more; send a long text in several turns of "
        "one session",
        param="body",
        expected=f"at most {limit} bytes",
        got="more",
        headers={"Connection": "close"},  # so much of a body is not read on to keep a connection
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except TimeoutError as error:
        expected, got = f"all of it within {seconds:g} s", f"{len(body)} bytes"
        raise APIError(
            408,
            "body_timeout",
            f"body: expected {expected}, got {got}; send a long text in several turns of one "
            "session",
            param="body",
            expected=expected,
            got=got,
            headers={"Connection": "close"},  # or the rest could come for ever
        ) from error
    except ClientDisconnect as error:
        raise APIError(499, "aborted", "the client left before its request was read") from error
    return bytes(body)


def parse(body: bytes) -> GenerateRequest:
    """The request that `body` holds as JSON; what it costs to refuse one is what the JSON costs.

    Raises:
        APIError: it holds none; one wrong argument is named.
    """
    try:
        fields = from_json(body)
    except ValueError as error:
        raise bad_request("body", "JSON in UTF-8", str(error)) from error
    if not isinstance(fields, dict):
        raise bad_request("body", "a JSON object", echo(fields))
    known = GenerateRequest.model_fields
    # Before pydantic looks: it would make an error of each.
    unknown = next((name for name in fields if name not in known), None)
    if unknown is not None:
        expected = f"one of the fields {', '.join(known)}"
        raise bad_request(shorten(unknown), expected, "an unknown field", "leave it out")
    try:
        return GenerateRequest.model_validate(fields)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False)[0]) from error


def tokenize(service: Service, asked: GenerateRequest) -> list[int]:
    """Token ids of the prompt, within this server's limits.

    Raises:
        APIError: the prompt or max_new_tokens goes beyond them.
    """
    settings = service.settings
    if asked.max_new_tokens > settings.max_new_tokens:
        raise bad_request(
            "max_new_tokens", f"at most {settings.max_new_tokens}", echo(asked.max_new_tokens)
        )
    param = "prompt_token_ids" if asked.in_ids else "prompt"
    ids = given_ids(service, asked) if asked.in_ids else encoded(service, asked)
    if len(ids) > settings.max_prompt_tokens:
        hint = "send it in several turns of one session"
        limit = f"at most {settings.max_prompt_tokens} tokens"
        raise bad_request(param, limit, f"{len(ids)} tokens", hint)
    return ids


def encoded(service: Service, asked: GenerateRequest) -> list[int]:
    """Token ids of a prompt that is text.

    Raises:
        APIError: there is none, or it has no tokens, or there is no tokenizer.
    """
    if asked.prompt is None:
        raise bad_request("prompt", "a value, it is required", "none", "or send prompt_token_ids")
    if service.encode is None:
        hint = "send prompt_token_ids, or put the tokenizer's files beside the model's and restart"
        raise bad_request("prompt", "none, as the model has no tokenizer", "a text", hint)
    ids = service.encode(asked.prompt, parse_special_tokens=asked.parse_special_tokens)
    if not ids:
        raise bad_request("prompt", "a text of at least one token", "none")
    return ids


def given_ids(service: Service, asked: GenerateRequest) -> list[int]:
    """A prompt that is token ids.

    Raises:
        APIError: one of them is none of the model's, or the request has a field that is for text.
    """
    ids, size = asked.prompt_token_ids or [], service.engine.vocab_size
    if asked.prompt is not None:
        raise bad_request("prompt", "none beside prompt_token_ids", "a text", "send one of them")
    if asked.parse_special_tokens:
        raise bad_request("parse_special_tokens", "false with prompt_token_ids", "true")
    if asked.stop and service.tokenizer is None:
        raise bad_request("stop", "none, as the model has no tokenizer", echo(asked.stop))
    for place, token in enumerate(ids):
        if not 0 <= token < size:
            param = f"prompt_token_ids.{place}"
            raise bad_request(param, f"a token id from 0 to {size - 1}", echo(token))
    return ids


def joined(deltas: Sequence[TextDelta]) -> TextDelta:
    """All of them as one; the first says whether there are texts and token ids."""
    text, ids = deltas[0].text, deltas[0].token_ids
    return TextDelta(
        text=None if text is None else "".join(delta.text or "" for delta in deltas),
        token_ids=None if ids is None else [i for delta in deltas for i in delta.token_ids or ()],
    )


def answer(said: TextDelta, result: TurnResult) -> GenerateResponse:
    """The response to a turn that has ended."""
    session = result.session
    return GenerateResponse(
        text=said.text,
        token_ids=said.token_ids,
        finish_reason=result.finish_reason,
        usage=Usage(
            prompt_tokens=result.prompt_tokens,
            resumed_tokens=result.resumed_tokens,
            generated_tokens=len(result.tokens),
        ),
        session=None
        if session is None
        else SessionRef(id=session.id, version=session.version, tokens=session.tokens),
    )


async def stream(
    first: TextDelta | TurnResult,
    events: AsyncGenerator[TextDelta | TurnResult],
    nothing: TextDelta,
) -> AsyncIterator[bytes]:
    """Server-sent events of a turn whose first event has come; the result adds `nothing`."""
    event = first
    async with aclosing(events):
        try:
            while isinstance(event, TextDelta):
                yield sse(event)
                event = await anext(events)
            yield sse(answer(nothing, event))
            yield format_sse_event(data_str="[DONE]")
        except EngineError as error:
            yield sse(from_engine(error).body, event="error")


def sse(data: BaseModel, event: str | None = None) -> bytes:
    """One server-sent event with JSON data."""
    return format_sse_event(data_str=data.model_dump_json().translate(_LINE_ENDS), event=event)
