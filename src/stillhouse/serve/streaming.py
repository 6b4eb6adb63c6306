"""The client's side of an answer: a stream of events, and work that is given up when the client goes."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from stillhouse.console import console
from stillhouse.errors import StillhouseError
from stillhouse.serve.security import error_body


def warn_of_fault(error: Exception, where: str) -> None:
    """Says what of ours failed and at which lines, without a word of what was asked."""
    lines = " < ".join(
        f"{Path(frame.filename).name}:{frame.lineno}"
        for frame in reversed(traceback.extract_tb(error.__traceback__)[-6:])
    )
    console.warn(f"internal error: {type(error).__name__} in {where} ({lines})")


class Gone(Exception):
    """The client left."""


async def _disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _first_of(work: Any, end: Any) -> Any:
    """Awaits both; whichever ends first ends the other. Raises Gone where that was ``end``."""
    tasks = asyncio.ensure_future(work), asyncio.ensure_future(end)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise Gone
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def while_connected(request: Request, work: Any) -> Any:
    """The result of ``work``, which is given up when the client goes."""
    return await _first_of(work, _disconnected(request.receive))


class EventStream(Response):
    """A stream of events that ends when the client goes, also while it waits for the next word."""

    media_type = "text/event-stream"

    def __init__(self, first: bytes, events: AsyncIterator[bytes], stack: contextlib.AsyncExitStack) -> None:
        super().__init__(None, headers={"x-accel-buffering": "no"}, media_type=self.media_type)
        del self.headers["content-length"]
        self._first, self._events, self._stack = first, events, stack

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def tell() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            try:
                async for event in self._events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            except Exception as error:
                told = str(error)
                if not isinstance(error, StillhouseError):
                    told = "internal error"
                    warn_of_fault(error, "a stream")
                body = b"data: " + error_body(told, "server_error") + b"\n\n"
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            with contextlib.suppress(Gone):
                await _first_of(tell(), _disconnected(receive))
        finally:
            await self._events.aclose()  # type: ignore[attr-defined]
            await self._stack.aclose()
