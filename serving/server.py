"""The server's process: its socket, its log, its signals."""

import asyncio
import errno
import logging
import os
import signal
import socket
import time
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.config import LOGGING_CONFIG

from serving.protocol import WatchfulProtocol
from serving.routes import Service

logger = logging.getLogger(__name__)

_UVICORNS: dict[str, Any] = LOGGING_CONFIG["loggers"]
LOGGING: dict[str, Any] = LOGGING_CONFIG | {
    "loggers": _UVICORNS | dict.fromkeys(("serving", "bmojo_neuron"), _UVICORNS["uvicorn"])
}
_NO_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_TO_LEAVE_S = 2.0  # that a client gets to read how its turn ended


class Server(uvicorn.Server):
    """An ASGI server that gives running turns some time when it is told to stop.

    What has not ended by then is rolled back, and its client is told so. Told a second time by
    Ctrl-C, the process ends at once, with exit code 130.

    Args:
        app: from `create_app`.
        log_level: of uvicorn's own log.
    """

    def __init__(self, app: FastAPI, log_level: str = "info") -> None:
        service: Service = app.state.service
        self._engine, self._patience = service.engine, service.settings.shutdown_timeout
        self._quiet_until = 0.0
        config = uvicorn.Config(
            app,
            host=service.settings.host,
            port=service.settings.port,
            http=WatchfulProtocol,
            ws="none",
            log_level=log_level,
            timeout_graceful_shutdown=self._patience + 5,
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn before it takes connections."""
        asyncio.get_running_loop().set_exception_handler(self._on_loop_error)
        await super().startup(sockets)
        if sockets is not None and self.started:
            self._log_started_message(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn on the first signal."""
        loop = asyncio.get_running_loop()
        stop = loop.call_later(self._patience, loop.run_in_executor, None, self._engine.stop)
        cut = loop.call_later(self._patience + _TO_LEAVE_S, self._cut)
        try:
            await super().shutdown(sockets)
        finally:
            stop.cancel()
            cut.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by Python on each signal."""
        if self.should_exit and sig == signal.SIGINT:
            os._exit(130)  # nothing of this process outlives it
        super().handle_exit(sig, frame)

    def _cut(self) -> None:
        """Of clients that do not read what they asked for."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if self.should_exit and "_start_serving" in context.get("message", ""):
            return  # out of descriptors it tries again after a second: the socket is closed by now
        if not isinstance(error, OSError) or error.errno not in _NO_RESOURCES:
            loop.default_exception_handler(context)
        elif time.monotonic() > self._quiet_until:  # asyncio tells it for each place in the backlog
            self._quiet_until = time.monotonic() + 1
            logger.error("no connection can be taken now: %s; those that are open go on", error)


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets bound to every address of `host`, not listening yet.

    Raises:
        OSError: an address is in use, or none of this machine.
    """
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sockets.append(socket.socket(family, kind, protocol))
            sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sockets[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sockets[-1].bind(address)
    except OSError as error:
        for bound in sockets:
            bound.close()
        reason = (error.strerror or str(error)).lower()
        raise OSError(f"{host}, port {port}: {reason}; --port takes another one") from error
    return sockets
