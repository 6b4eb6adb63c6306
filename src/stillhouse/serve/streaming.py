"""Streams events to a client, and cancels work when the client disconnects."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from stillhouse.errors import StillhouseError
from stillhouse.serve.error_responses import log_fault
from stillhouse.serve.errors import ClientDisconnected, error_body


async def while_connected(request: Request, work: Any) -> Any:
    """Awaits ``work`` and returns its result.

    Raises:
        ClientDisconnected: the client closed its connection; ``work`` is cancelled.
    """
    return await _run_until(work, _disconnect(request.receive))


def error_event(message: str) -> bytes:
    """Returns the event of an error in the middle of a stream, in the OpenAI API's form."""
    return b"data: " + error_body(message, "server_error") + b"\n\n"


class EventStream(Response):
    """A response of events that ends when the client disconnects.

    Back-pressure: ``send`` waits while the client's socket buffer is full, and the next event is only
    requested afterwards. A forwarded answer is then not read ahead; a local model keeps generating, up to
    its ``max_tokens``.

    Args:
        first: the first event. The handler has already awaited it, so that whatever fails before is an
            ordinary error response with its own status.
        events: the events after it.
        stack: what to release at the end: the place in the queue and the model.
        error: writes the event of an error.
    """

    def __init__(
        self,
        first: bytes,
        events: AsyncIterator[bytes],
        stack: contextlib.AsyncExitStack,
        *,
        media_type: str = "text/event-stream",
        error: Callable[[str], bytes] = error_event,
    ) -> None:
        # nginx would otherwise buffer the stream.
        super().__init__(None, headers={"x-accel-buffering": "no"}, media_type=media_type)
        del self.headers["content-length"]
        self._first, self._events, self._stack, self._error = first, events, stack, error

    def translated(
        self, translate: Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]], media_type: str
    ) -> EventStream:
        """This stream with other events, which ``translate`` makes from those of this one."""
        # Closing it cancels the generation, also of a translation that has not begun.
        self._stack.push_async_callback(self._events.aclose)  # type: ignore[attr-defined]
        return EventStream(b"", translate(self._all()), self._stack, media_type=media_type, error=self._error)

    async def _all(self) -> AsyncIterator[bytes]:
        yield self._first
        async for event in self._events:
            yield event

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            with contextlib.suppress(ClientDisconnected):
                await _run_until(self._send_all(send), _disconnect(receive))
        finally:
            # Closing the events cancels the generation; only then may the model be unloaded.
            await self._events.aclose()  # type: ignore[attr-defined]
            await self._stack.aclose()

    async def _send_all(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        try:
            async for event in self._events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        except Exception as error:
            # The status 200 is already sent, so the error can only be an event.
            message = str(error)
            if not isinstance(error, StillhouseError):
                message = "internal error"
                log_fault(error, "a stream")
            await send({"type": "http.response.body", "body": self._error(message), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnect(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _run_until(work: Any, end: Any) -> Any:
    """Awaits ``work`` and ``end``, and cancels the other when one ends; raises if it was ``end``."""
    tasks = asyncio.ensure_future(work), asyncio.ensure_future(end)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise ClientDisconnected
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
