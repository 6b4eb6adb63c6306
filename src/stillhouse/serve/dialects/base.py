"""What the dialects share: asking for a chat completion, and translating its stream."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

import orjson
from starlette.requests import Request
from starlette.responses import Response

from stillhouse.errors import ApiError, StillhouseError
from stillhouse.serve.api.request_parsing import parse_body
from stillhouse.serve.api.schema import ChatRequest
from stillhouse.serve.context import ServerContext
from stillhouse.serve.endpoints.chat_completions import create_chat_completion
from stillhouse.serve.endpoints.forward import forward
from stillhouse.serve.error_responses import log_fault
from stillhouse.serve.errors import InvalidRequestError
from stillhouse.serve.streaming import EventStream


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
    answer = form.whole(_checked(orjson.loads(response.body), chat["model"]))
    return Response(orjson.dumps(answer), media_type="application/json")


async def _translate(events: AsyncIterator[bytes], form: AnswerForm) -> AsyncIterator[bytes]:
    try:
        for event in form.begin():
            yield event
        async for chunk in _chunks(events):
            for event in form.add(chunk):
                yield event
        for event in form.end():
            yield event
    except Exception as error:  # the status 200 is already sent, so an error can only be an event
        if not isinstance(error, StillhouseError):
            log_fault(error, "a stream")
        message = str(error) if isinstance(error, StillhouseError) else "internal error"
        for event in form.fail(message):
            yield event


async def _chunks(events: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a stream of server-sent events. The first part of a tool call has an id, and no other.

    Raises:
        StreamError: the stream contains an error.
    """
    rest = b""
    known_calls = set[Any]()
    async for event in events:
        *lines, rest = (rest + event).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if not line.startswith(b"data:") or data == b"[DONE]":
                continue
            chunk = orjson.loads(data)
            if error := chunk.get("error"):
                raise StreamError(str(error.get("message", error) if isinstance(error, dict) else error))
            for choice in chunk.get("choices") or ():
                delta = choice["delta"] = choice.get("delta") or {}
                _rename_reasoning(delta)
                for call in delta.get("tool_calls") or ():
                    _identify(call, known_calls)
            yield chunk


def _checked(completion: dict[str, Any], model: str) -> dict[str, Any]:
    """A chat completion with the fields that all servers should send.

    Raises:
        ApiError: it has no answer.
    """
    if not completion.get("choices"):
        raise ApiError(f"{model}: the response of the other server has no answer")
    choice = completion["choices"][0]
    choice.setdefault("finish_reason", "stop")
    message = choice["message"] = choice.get("message") or {}
    _rename_reasoning(message)
    for call in message.get("tool_calls") or ():
        call["id"] = call.get("id") or f"call_{secrets.token_hex(12)}"
    return completion


def _rename_reasoning(message: dict[str, Any]) -> None:
    """Names the reasoning of a message, or of a part of one, as this server does."""
    if reasoning := message.pop("reasoning", None):
        message.setdefault("reasoning_content", reasoning)


def _identify(call: dict[str, Any], known: set[Any]) -> None:
    """Gives the first part of a tool call an id and takes it from the others; servers differ in this."""
    key = call.get("index", call.get("id"))
    is_first = not known or (key is not None and key not in known)
    known.add(key)
    call["id"] = (call.get("id") or f"call_{secrets.token_hex(12)}") if is_first else None


def arguments_of(text: str | None) -> dict[str, Any]:
    """The arguments of a tool call.

    Raises:
        ApiError: they are not a JSON object, which another server's model can write.
    """
    try:
        arguments = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        arguments = None
    if not isinstance(arguments, dict):
        raise ApiError("the model called a tool with arguments that are not a JSON object; try again")
    return arguments


def object_of(value: Any) -> dict[str, Any]:
    """The value if it is a JSON object, else an empty one, whose fields are then missing."""
    return value if isinstance(value, dict) else {}


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
    if not isinstance(content, list):
        raise InvalidRequestError(f"a content must be a text or a list of parts, not {content!r:.40}", where)
    texts = []
    for part in content:
        kind = object_of(part).get("type")
        if kind not in types or not isinstance(part.get("text"), str):
            raise InvalidRequestError(
                f"parts of type {kind!r} cannot be read; send {' or '.join(types)}", where
            )
        texts.append(part["text"])
    return "".join(texts)


def server_sent_event(kind: str, data: dict[str, Any]) -> bytes:
    """One event with a name."""
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n"
