"""HTTP/1.1 as uvicorn speaks it, except that a client that leaves is always noticed."""

import h11
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.h11_impl import H11Protocol


class WatchfulProtocol(H11Protocol):
    """Goes on reading while an answer is pending.

    uvicorn stops when bytes come after a request (a late line end, the next request), and then does
    not see the connection end either. Here such bytes wait in h11's buffer for their turn. A client
    that sends more of them than a buffer should hold is cut off, as if it had left.
    """

    def data_received(self, data: bytes) -> None:
        """Called by asyncio with each piece of what the client sends."""
        if self.conn.their_state is h11.MUST_CLOSE:
            return  # it said that nothing would follow: h11 would make this an error
        super().data_received(data)

    def handle_events(self) -> None:
        """Called by uvicorn when h11 may have found something."""
        super().handle_events()
        if self.cycle is None or self.cycle.more_body or self.cycle.response_complete:
            return
        if len(self.conn.trailing_data[0]) > HIGH_WATER_LIMIT:
            self.transport.abort()
        else:
            self.flow.resume_reading()
