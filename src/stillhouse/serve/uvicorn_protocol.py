"""HTTP connections that nobody can hold open for nothing.

uvicorn's own protocol waits for ever for a request's headers and for a reader that does not read, keeps
every header it is sent, and gives an answer up when its client ends only its own side. This one does not.
What bounds a body is in safety.py.
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
"""Headers, body, and what chunks and trailers add."""
IDLE_S = 30
"""Between an answer and the next request."""
UNREAD_S = 60.0
"""For a client that has stopped reading with more than 64 KiB before it."""
PROBES_S = (0.0, 0.25, 1.0, 4.0)
"""After the end of a client's side, when it is asked whether it is still there."""


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's protocol over httptools, with an end to every wait."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._bytes, self._in_head = 0, False
        self._late: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._late, self._unread):
            if timer:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        answering = self.cycle is not None and not self.cycle.response_complete
        if self._in_head or not answering:
            self._await_head()
        if self._bytes > (REQUEST_BYTES if answering and not self._in_head else HEAD_BYTES):
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
        if self._late:
            self._late.cancel()
            self._late = None

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the connection stays: a whole request is answered though no other can follow it.

        To the system a client that is gone looks the same until something is written to it. So it is
        written the interim answer that HTTP lets a server send at any time; one that is gone resets the
        connection, which the next write finds out.
        """
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body or self.pipeline:
            return False
        if cycle.scope["http_version"] != "1.1":  # knows no interim answers
            return False
        cycle.keep_alive = False
        for seconds in PROBES_S:
            self.loop.call_later(seconds, self._probe)
        return True

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._await_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread and not self.transport.is_closing():
            self._unread.cancel()
            self._unread = None

    def timeout_keep_alive_handler(self) -> None:
        self.transport.abort()  # close() would wait for a reader

    def _await_head(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(HEAD_S, self.transport.abort)

    def _await_reader(self) -> None:
        if self._unread is None:
            self._unread = self.loop.call_later(UNREAD_S, self.transport.abort)

    def _probe(self) -> None:
        if not (self.cycle.response_started or self.transport.is_closing()):
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
