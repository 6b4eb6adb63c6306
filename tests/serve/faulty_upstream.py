"""An OpenAI-compatible server on loopback that records its requests, and fails in the way they select."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from loopback import bound_server, running
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

WORDS = ["one ", "two\u2028", "three\x85 ", "four"]
WHOLE = {"id": "x", "object": "chat.completion", "created": 0, "model": "theirs-0613", "usage": None}
FAULTS = {
    "busy": lambda: JSONResponse({"error": {"message": "later", "code": "busy"}}, 429, {"retry-after": "17"}),
    "key": lambda: JSONResponse({"error": {"message": "no such key"}}, 401),
    "proxy": lambda: PlainTextResponse("<h1>Bad Gateway</h1>", 503),
    "detail": lambda: JSONResponse({"detail": [{"loc": ["body"], "msg": "wrong"}]}, 422),
    "moved": lambda: RedirectResponse("http://127.0.0.1:9/elsewhere"),
    "inside": lambda: JSONResponse({"error": {"message": "a gateway's", "code": 502}}),
    "list": lambda: JSONResponse([]),
    "text": lambda: PlainTextResponse("Hello."),
}
"""Last message of a request -> response."""


class FaultyUpstream:
    """A record of the server's requests and streams."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.open = 0
        """Streams in progress."""
        self.written = 0
        """Events sent in the endless stream."""

    async def answer(self, request: Request) -> Response:
        self.bodies.append(json.loads(await request.body()))
        self.headers.append(dict(request.headers))
        order = self.bodies[-1]["messages"][-1]["content"]
        if order in FAULTS:
            return FAULTS[order]()
        if self.bodies[-1].get("stream"):
            return StreamingResponse(self._stream(order), media_type="text/event-stream; charset=utf-8")
        message: dict[str, Any] = {"role": "assistant", "content": "Hello."}
        if order.startswith("["):
            message = {"role": "assistant", "content": None, "tool_calls": json.loads(order)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse(WHOLE | {"choices": [choice], "more": {"model": "kept"}})

    async def _stream(self, order: str) -> AsyncIterator[bytes]:
        self.open += 1
        try:
            if order == "in crumbs":
                events = [b": still thinking\r\n\r\n", *map(_event, WORDS), b"data: [DONE]\r\n\r\n"]
                for byte in b"".join(events):
                    yield bytes([byte])
                return
            if order.startswith("["):  # deltas of tool calls
                for call in json.loads(order):
                    yield _event({"tool_calls": [call]})
                yield b"data: [DONE]\n"
                return
            for word in WORDS[:2]:
                yield _event(word)
            if order == "cut":
                yield b'data: {"id": "x", "choi'
                raise ConnectionResetError
            if order == "error":
                yield b'data: {"error": {"message": "out of memory", "type": "server_error"}}\n\n'
                return
            if order == "silent end":
                return
            if order == "slow":
                await asyncio.sleep(1.0)
            while order == "endless":
                self.written += 1
                yield _event("x" * 10_000)
                await asyncio.sleep(0)  # without a pause uvicorn never notices that the client is gone
            yield b"data: [DONE]\n"
        finally:
            self.open -= 1


def _event(delta: str | dict[str, Any]) -> bytes:
    delta = {"content": delta} if isinstance(delta, str) else delta
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    data = {**WHOLE, "object": "chat.completion.chunk", "choices": [choice]}
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\r\n\r\n"


@contextlib.contextmanager
def serving(faulty: FaultyUpstream) -> Iterator[str]:
    """Serves ``faulty`` in a thread; yields its address."""
    routes = [Route("/v1/chat/completions", faulty.answer, methods=["POST"])]
    runner, bound, address = bound_server(Starlette(routes=routes))
    with running(runner, bound):
        yield f"{address}/v1"
