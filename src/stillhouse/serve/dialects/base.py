"""What the dialects share: asking for a chat completion, and translating its stream."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol

import orjson
from starlette.requests import Request
from starlette.responses import Response

from stillhouse.errors import StillhouseError
from stillhouse.serve.api.request_parsing import parse_body
from stillhouse.serve.api.schema import ChatRequest
from stillhouse.serve.context import ServerContext
from stillhouse.serve.endpoints.chat_completions import create_chat_completion
from stillhouse.serve.endpoints.forward import forward
from stillhouse.serve.error_responses import log_fault
from stillhouse.serve.errors import InvalidRequestError
from stillhouse.serve.streaming import EventStream

ErrorForm = Callable[[int, str, dict[str, Any]], dict[str, Any]]
"""Builds the body of an error from the HTTP status, the message, and the error in the OpenAI API's form."""


class StreamError(StillhouseError):
    """The other server's stream ended with an error."""


class AnswerForm(Protocol):
    """One answer in a dialect. A new one for each request, as it gathers the answer while it streams."""

    media_type: str
    """Of a stream."""

    def whole(self, completion: dict[str, Any]) -> dict[str, Any]:
        """The answer, from a chat completion."""
        ...

    def begin(self) -> Iterator[bytes]:
        """Events before the first chunk."""
        ...

    def add(self, chunk: dict[str, Any]) -> Iterator[bytes]:
        """Events of a chunk of a chat completion."""
        ...

    def end(self) -> Iterator[bytes]:
        """Events after the last chunk."""
        ...

    def fail(self, message: str) -> Iterator[bytes]:
        """Events of an error within a stream."""
        ...


async def answer_chat(
    context: ServerContext, request: Request, chat: dict[str, Any], form: AnswerForm
) -> Response:
    """Responds with the answer to ``chat``, the body of a chat completion, in ``form``."""
    chat = {name: value for name, value in chat.items() if value is not None}
    if chat.get("stream"):
        chat["stream_options"] = {"include_usage": True}
    body = orjson.dumps(chat)
    if upstream := context.pool.upstreams.get(chat["model"]):
        response = await forward(context, request, upstream, body, "/chat/completions")
    else:
        response = await create_chat_completion(context, request, parse_body(ChatRequest, body))
    if isinstance(response, EventStream):
        return response.translated(lambda events: _translate(events, form), form.media_type)
    return Response(orjson.dumps(form.whole(orjson.loads(response.body))), media_type="application/json")


async def _translate(events: AsyncIterator[bytes], form: AnswerForm) -> AsyncIterator[bytes]:
    for event in form.begin():
        yield event
    try:
        async for chunk in _chunks(events):
            for event in form.add(chunk):
                yield event
    except Exception as error:  # the status 200 is already sent, so an error can only be an event
        if not isinstance(error, StillhouseError):
            log_fault(error, "a stream")
        message = str(error) if isinstance(error, StillhouseError) else "internal error"
        for event in form.fail(message):
            yield event
        return
    for event in form.end():
        yield event


async def _chunks(events: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a stream of server-sent events.

    Raises:
        StreamError: the stream contains an error.
    """
    rest = b""
    async for event in events:
        *lines, rest = (rest + event).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if not line.startswith(b"data:") or data == b"[DONE]":
                continue
            chunk = orjson.loads(data)
            if error := chunk.get("error"):
                raise StreamError(str(error.get("message", error) if isinstance(error, dict) else error))
            yield chunk


def refuse(body: Any, **wanted: str) -> None:
    """Refuses fields that would change the answer and cannot be followed.

    Args:
        wanted: field -> why not; each must be absent, null or empty.

    Raises:
        InvalidRequestError: one of them is set.
    """
    for field, reason in wanted.items():
        if getattr(body, field) not in (None, False, "", [], {}):
            raise InvalidRequestError(reason, field)


def text_of(content: Any, types: tuple[str, ...], where: str) -> str:
    """The text of a message's content: a text, or parts of these ``types``.

    Raises:
        InvalidRequestError: a part has another type, such as an image.
    """
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content:
        if part.get("type") not in types or not isinstance(part.get("text"), str):
            raise InvalidRequestError(
                f"parts of type {part.get('type')!r} cannot be read; send {' or '.join(types)}", where
            )
        texts.append(part["text"])
    return "".join(texts)


def server_sent_event(kind: str, data: dict[str, Any]) -> bytes:
    """One event with a name."""
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n"


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())
