"""Limits on HTTP connections that uvicorn does not have.

uvicorn's own protocol waits forever for a request's headers and for a client that does not read, buffers
headers without limit, and drops an answer when its client shuts down only the sending side of the connection.
This one does not. security.py limits request bodies.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from stillhouse.serve.security import BODY_LIMIT

HEAD_S = 10.0
"""From the opening of a connection, or the first byte of a later request, to the end of its headers."""
HEAD_BYTES = 64 * 2**10
REQUEST_BYTES = 2 * BODY_LIMIT
"""Headers and body, with what chunked encoding and trailers add."""
IDLE_S = 30
"""Between an answer and the next request."""
UNREAD_S = 60.0
"""For a client that stopped reading and has more than 64 KiB waiting for it."""
PROBES_S = (0.0, 0.25, 1.0, 4.0)
"""When to check, after a client shut down its sending side, whether it still reads."""


class LimitedHttpProtocol(HttpToolsProtocol):
    """uvicorn's httptools protocol with timeouts and size limits."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._bytes, self._in_head = 0, False
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._head_timer, self._unread_timer):
            if timer:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        answering = self.cycle is not None and not self.cycle.response_complete
        if self._in_head or not answering:
            self._start_head_timer()
        if self._bytes > (REQUEST_BYTES if answering and not self._in_head else HEAD_BYTES):
            # An error response could end up in the middle of the answer that is being sent.
            if answering:
                self.transport.abort()
            else:
                self.send_400_response("The headers are too large.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._bytes, self._in_head = 0, True

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._bytes, self._in_head = 0, False
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None

    def eof_received(self) -> bool:  # type: ignore[override]
        """Returns True to keep the connection, so that a complete request is still answered.

        For the operating system, a client that shut down its sending side looks like one that is gone, until
        something is written to it. So this sends the interim response `100 Continue`, which HTTP/1.1 allows
        at any time before the answer. A client that is gone resets the connection, which the next write
        detects.
        """
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body or self.pipeline:
            return False
        if cycle.scope["http_version"] != "1.1":  # HTTP/1.0 has no interim responses
            return False
        cycle.keep_alive = False
        for seconds in PROBES_S:
            self.loop.call_later(seconds, self._probe)
        return True

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # Below 64 KiB asyncio calls no pause_writing, and close() still waits until the client has read it.
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._start_unread_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_unread_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread_timer and not self.transport.is_closing():
            self._unread_timer.cancel()
            self._unread_timer = None

    def timeout_keep_alive_handler(self) -> None:
        self.transport.abort()  # close() would wait until the client has read everything

    def _start_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self.transport.abort)

    def _start_unread_timer(self) -> None:
        if self._unread_timer is None:
            self._unread_timer = self.loop.call_later(UNREAD_S, self.transport.abort)

    def _probe(self) -> None:
        if not (self.cycle.response_started or self.transport.is_closing()):
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
