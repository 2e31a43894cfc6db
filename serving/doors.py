"""What stands before the routes: who may ask, and HEAD.

Requests that a web page could send behind its visitor's back are refused.
"""

import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.errors import APIError, shorten

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:@/]+)(:[0-9]*)?")


class HeadAsGet:
    """ASGI middleware that lets the app answer HEAD as GET; the server then leaves the body out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope.get("method") == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


class Doors:
    """ASGI middleware that answers 403 to a Host or an Origin of another name.

    A foreign Host is a page whose name was made to point here (DNS rebinding), a foreign Origin a
    page of another site. Ports and schemes do not matter.

    Args:
        app: behind the doors.
        hosts: names that are answered, in lower case, IPv6 addresses in brackets; "*" is any.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        refusal = self._refusal(Headers(scope=scope)) if scope["type"] == "http" else None
        await (refusal.response() if refusal else self._app)(scope, receive, send)

    def _refusal(self, headers: Headers) -> APIError | None:
        if "*" in self._hosts:
            return None
        if not self._knows(headers.get("host", "")):
            return self._forbidden("Host", headers.get("host", "none"))
        origins = headers.getlist("origin")
        foreign = [origin for origin in origins if not self._knows(origin.partition("://")[2])]
        return self._forbidden("Origin", foreign[0]) if foreign else None

    def _knows(self, authority: str) -> bool:
        match = _HOST.fullmatch(authority)
        return match is not None and match[1].lower() in self._hosts

    def _forbidden(self, header: str, got: str) -> APIError:
        expected = f"one of the names {', '.join(sorted(self._hosts))}"
        return APIError(
            403,
            f"{header.lower()}_not_allowed",
            f"{header}: expected {expected}, got {shorten(got)}; BMOJO_ALLOWED_HOSTS says which "
            "names this server answers to",
            param=header,
            expected=expected,
            got=shorten(got),
        )
