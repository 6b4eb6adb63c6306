"""A chat API on loopback that streams: what it answers follows from the last message."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

REASONING = "Let me think.\n"
ATTACK = "\x1b]0;owned\x07\x9b2Jred"


@dataclass
class ChatApi:
    """The server, and what it was asked."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    cancelled: int = 0
    """Streams whose client left before the end."""

    @property
    def app(self) -> Starlette:
        return Starlette(routes=[Route("/v1/chat/completions", self.complete, methods=["POST"])])

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        question = body["messages"][-1]["content"]
        if question == "refuse":
            return JSONResponse({"error": {"message": "bad \x1b[31mkey"}}, 401)
        return StreamingResponse(self._events(question), media_type="text/event-stream")

    async def _events(self, question: str) -> AsyncIterator[str]:
        try:
            for delta in deltas(question):
                yield event({"choices": [{"index": 0, "delta": delta}]})
                await asyncio.sleep(0)
            while question == "forever":
                yield event({"choices": [{"index": 0, "delta": {"content": "more "}}]})
                await asyncio.sleep(0.02)
            if question == "break":
                yield event({"error": {"message": "the model failed"}})
                return
            finish = "length" if question == "long" else "stop"
            yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
            yield event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})
            yield "data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise


def deltas(question: str) -> list[dict[str, str]]:
    match question:
        case "think":
            return [{"reasoning_content": REASONING}, {"content": "An "}, {"content": "answer."}]
        case "inline":
            return [{"content": "<thi"}, {"content": f"nk>{REASONING}</think>\n\nAn answer."}]
        case "attack":
            return [{"content": ATTACK[:3]}, {"content": ATTACK[3:]}]
        case _:
            return [{"content": f"heard {question}"}]


def event(data: dict[str, Any]) -> str:
    body = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", **data}
    return f"data: {json.dumps(body)}\n\n"
