"""Every answer that is not a success has one JSON shape: {"error": {code, message, ...}}.

The layers below raise errors of their own (`EngineError`, `SessionError`); this module alone knows
which HTTP status each of them is.
"""

import json
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.routing import Match

from serving.engine import EngineError, EngineStopped, QueueFull, TurnAborted, TurnFailed
from serving.schemas import ErrorBody, ErrorResponse
from serving.sessions import SessionBusy, SessionError, StoreFull

_LONGEST_ECHO = 80  # characters that an error message repeats of what a caller wrote
_JSON = json.JSONEncoder(ensure_ascii=False, default=str)
_RETRY = {"Retry-After": "1"}


class APIError(Exception):
    """An answer that is not a success.

    Args:
        status: HTTP status.
        code: a word for programs; it does not change.
        message: a sentence for people.
        param: the field or path parameter that is wrong.
        expected: what it should have been.
        got: what came.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        expected: str | None = None,
        got: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.body = ErrorResponse(
            error=ErrorBody(code=code, message=message, param=param, expected=expected, got=got)
        )

    def response(self) -> JSONResponse:
        """The same, as a response."""
        return JSONResponse(self.body.model_dump(), self.status, headers=self.headers)


def bad_request(param: str, expected: str, got: str, hint: str = "") -> APIError:
    """An argument has the wrong value."""
    message = f"{param}: expected {expected}, got {got}" + (f"; {hint}" if hint else "")
    return APIError(400, "invalid_argument", message, param=param, expected=expected, got=got)


def session_not_found(session_id: str) -> APIError:
    """The session never was, was deleted, or was evicted: the store does not know which."""
    return APIError(
        404,
        "session_not_found",
        f"session_id: no session {session_id!r} is kept here; it was never used, was deleted, or "
        "was dropped to make room; POST /generate with this id starts a new one",
        param="session_id",
        expected="the id of a session that is kept",
        got=session_id,
    )


def invalid(error: ErrorDetails) -> APIError:
    """What pydantic found wrong with an argument."""
    param = shorten(".".join(str(part) for part in error["loc"]))
    if error["type"] == "missing":
        return bad_request(param, "a value, it is required", "none")
    return bad_request(param, error["msg"].removeprefix("Input should be "), echo(error["input"]))


def echo(value: object) -> str:
    """A wrong value as JSON, cut to a length that fits a message; the rest is not even written."""
    text = ""
    for part in _JSON.iterencode(value):
        text += part
        if len(text) > _LONGEST_ECHO:
            break
    return shorten(text)


def shorten(text: str) -> str:
    """What a caller wrote, cut to a length that fits a message."""
    return text if len(text) <= _LONGEST_ECHO else f"{text[:_LONGEST_ECHO]}..."


def from_engine(error: EngineError | SessionError) -> APIError:
    """The answer to a turn that did not end."""
    match error:
        case QueueFull():
            message = "too many turns wait for the model; try again in a moment"
            return APIError(503, "queue_full", message, headers=_RETRY)
        case EngineStopped():
            message = "the server is stopping or its engine has died; the session is unchanged"
            return APIError(503, "unavailable", message, headers=_RETRY)
        case TurnAborted():
            return APIError(499, "aborted", "the client gave up; the session is unchanged")
        case TurnFailed():
            message = "the model failed, the server's log says why; the session is unchanged"
            return APIError(500, "turn_failed", message)
        case SessionBusy():
            return APIError(
                409,
                "session_busy",
                f"session_id: another turn of session {error.args[0]!r} is in progress; "
                "wait until it has ended, or use another session",
                param="session_id",
                expected="a session without a turn in progress",
                got=str(error.args[0]),
                headers=_RETRY,
            )
        case StoreFull():
            message = "every session that can be kept has a turn in progress; try again in a moment"
            return APIError(429, "sessions_full", message, headers=_RETRY)
    raise AssertionError(f"no answer for {error!r}")


def methods(request: Request) -> list[str]:
    """The methods that the path of a request knows, of all its routes together."""
    found = [
        method
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
        for scope in [dict(request.scope, method=method.replace("HEAD", "GET"))]
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
    ]
    return found or ["GET", "HEAD"]  # a file of a mounted folder


def add_error_handlers(app: FastAPI) -> None:
    """Let every error of `app`, FastAPI's own included, take the one shape."""

    async def api_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, APIError)
        return error.response()

    async def turn_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, EngineError | SessionError)
        return from_engine(error).response()

    async def parameter_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first: ErrorDetails = error.errors()[0]
        return invalid({**first, "loc": first["loc"][1:]}).response()

    async def http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        what = f"{shorten(request.method)} {shorten(request.url.path)}"
        code, message = "http_error", str(error.detail)
        if error.status_code == 404:
            code, message = "unknown_route", f"{what}: no such route; GET /docs lists them all"
        elif error.status_code == 405:
            allowed = ", ".join(methods(request))
            code, message = "method_not_allowed", f"{what}: expected the method {allowed}"
            return APIError(405, code, message, headers={"Allow": allowed}).response()
        return APIError(error.status_code, code, message, headers=error.headers).response()

    async def unexpected_error(_: Request, error: Exception) -> JSONResponse:
        message = "the server failed on this request, its log says why"
        return APIError(500, "internal_error", message).response()

    app.add_exception_handler(APIError, api_error)
    app.add_exception_handler(EngineError, turn_error)
    app.add_exception_handler(SessionError, turn_error)
    app.add_exception_handler(RequestValidationError, parameter_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, unexpected_error)
