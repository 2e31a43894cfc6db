"""HTTP/1.1 as uvicorn speaks it, with more care for how requests and connections end."""

import asyncio
import sys
from typing import Any, cast

import h11
from uvicorn.protocols.http.flow_control import CLOSE_HEADER, HIGH_WATER_LIMIT
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol, RequestResponseCycle

from serving.engine import EngineStopped
from serving.errors import APIError, from_engine, shorten

_DRAINED_BYTES = 65_536  # of a body that nobody reads, before its connection is closed
_DRAIN_S = 1.0


class LingeringTransport:
    """A transport that, closed before a request has been read, says so and reads on for a moment.

    If it did not, the system would answer the bytes that it drops with a reset, on which a client
    may lose the answer that it has not read yet (RFC 9112, 9.6).
    """

    def __init__(self, transport: asyncio.Transport, conn: h11.Connection) -> None:
        self._transport, self._conn = transport, conn
        self._left: int | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Whether nothing is answered any more."""
        return self._left is not None or self._transport.is_closing()

    def close(self) -> None:
        """See the class."""
        if self._conn.their_state not in (h11.SEND_BODY, h11.ERROR):
            self._transport.close()
        elif not self.is_closing():
            self._left = _DRAINED_BYTES
            self._transport.write_eof()
            self._transport.resume_reading()
            asyncio.get_running_loop().call_later(_DRAIN_S, self._transport.close)

    def discard(self, data: bytes) -> None:
        """Take what comes after `close`."""
        assert self._left is not None
        self._left -= len(data)
        if self._left < 0:
            self._transport.close()


class WatchfulProtocol(H11Protocol):
    """Notices a client that leaves, answers what never reaches the app, and reads no body in vain.

    uvicorn stops reading when bytes come after a request (a late line end, the next request), and
    then does not see the connection end either. Here such bytes wait in h11's buffer for their
    turn. A client that sends more of them than a buffer should hold is cut off, as if it had left.
    """

    transport: LingeringTransport  # type: ignore[assignment]
    _unread = 0  # bytes of a body that came after its answer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by asyncio."""
        lingering = LingeringTransport(transport, self.conn)
        super().connection_made(cast(asyncio.Transport, lingering))

    def data_received(self, data: bytes) -> None:
        """Called by asyncio with each piece of what the client sends."""
        if self.transport.is_closing():
            self.transport.discard(data)
            return
        if self.conn.their_state is h11.MUST_CLOSE:
            return  # it said that nothing would follow: h11 would make this an error
        super().data_received(data)
        if self._answered_early:
            self._unread += len(data)
            if self._unread > _DRAINED_BYTES:
                self.transport.close()

    def handle_events(self) -> None:
        """Called by uvicorn when h11 may have found something."""
        super().handle_events()
        if self.cycle is None or self.cycle.more_body or self.cycle.response_complete:
            return
        if len(self.conn.trailing_data[0]) > HIGH_WATER_LIMIT:
            self.transport.abort()
        else:
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """Called by uvicorn; a body that is still on its way may come, if it is short and soon."""
        super().on_response_complete()
        if self._answered_early:
            self._unread = 0
            self.loop.call_later(_DRAIN_S, self._give_up, self.cycle)

    def shutdown(self) -> None:
        """Called by uvicorn on the first signal: a turn may end, half a request need not."""
        if self.transport.is_closing():
            return
        if self.cycle is None or not self.cycle.more_body or self.cycle.response_started:
            super().shutdown()
        else:
            self._refuse(from_engine(EngineStopped()))

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn while it handles h11's error."""
        error = sys.exception()
        assert isinstance(error, h11.RemoteProtocolError)
        status, code, got = error.error_status_hint, "invalid_http", shorten(str(error))
        expected = "a request in HTTP/1.1"
        if status == 431:
            code, got = "head_too_large", "more"
            expected = f"at most {self.conn._max_incomplete_event_size} bytes before the body"
        message = f"{msg.rstrip('.')}: expected {expected}, got {got}"
        self._refuse(APIError(status, code, message, expected=expected, got=got))

    @property
    def _answered_early(self) -> bool:
        return (
            self.conn.their_state is h11.SEND_BODY
            and self.cycle.response_complete
            and not self.transport.is_closing()
        )

    def _give_up(self, cycle: RequestResponseCycle) -> None:
        if self.cycle is cycle and self._answered_early:
            self.transport.close()

    def _refuse(self, error: APIError) -> None:
        """Answer in place of the app, to which the client seems to have left, and close."""
        head_only = False
        if self.cycle is not None and not self.cycle.response_complete:
            head_only = self.cycle.scope["method"] == "HEAD"
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = error.response()
            headers = [*self.server_state.default_headers, *response.raw_headers, CLOSE_HEADER]
            reason = STATUS_PHRASES[error.status]
            for event in (
                h11.Response(status_code=error.status, headers=headers, reason=reason),
                h11.Data(data=b"" if head_only else bytes(response.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
        self.transport.close()
