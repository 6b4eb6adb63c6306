"""`POST /v1/messages` and `POST /v1/messages/count_tokens`: Anthropic's Messages API.

https://platform.claude.com/docs/en/api/messages
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stillhouse.serve.api.request_parsing import parse_body
from stillhouse.serve.api.schema import RequestBody, RequestPart, Text, TokenizeRequest
from stillhouse.serve.context import ServerContext
from stillhouse.serve.dialects.base import (
    answer_chat,
    arguments_of,
    object_of,
    refuse,
    server_sent_event,
    text_of,
)
from stillhouse.serve.endpoints.tokenize import tokenize
from stillhouse.serve.error_forms import messages_error
from stillhouse.serve.errors import InvalidRequestError

_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


class MessagesTurn(RequestPart):
    """One turn of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: Text | list[dict[str, Any]]


class MessageCountRequest(RequestBody):
    """`POST /v1/messages/count_tokens`: the fields that make a prompt, and others without effect."""

    model: str
    messages: Annotated[list[MessagesTurn], Field(min_length=1, max_length=10_000)]
    system: Text | list[dict[str, Any]] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    stop_sequences: Annotated[list[str], Field(max_length=16)] | None = None
    stream: bool | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    """`disabled` turns reasoning off where the chat template can; a budget has no effect."""
    output_config: dict[str, Any] | None = None
    """`format` of type `json_schema`, and `effort`."""
    output_format: dict[str, Any] | None = None
    """The older place of `output_config.format`."""
    cache_control: Any = None
    """No effect, as `context_management`, `inference_geo` and `speed`: the server caches every prompt."""
    context_management: Any = None
    inference_geo: Any = None
    speed: Any = None
    mcp_servers: Any = None
    """Refused."""
    container: Any = None
    """Refused."""


class MessagesRequest(MessageCountRequest):
    """`POST /v1/messages`."""

    max_tokens: Annotated[int, Field(ge=1, lt=2**31)]


async def count_message_tokens(
    context: ServerContext, request: Request, body: MessageCountRequest
) -> Response:
    """Returns the number of tokens that the prompt has."""
    if upstream := context.pool.upstreams.get(body.model):
        raise InvalidRequestError(f"the prompt is tokenized by {upstream.host}, not here", "model")
    chat = chat_of_messages(body)
    fields = ("model", "messages", "tools", "continue_final_message", "add_generation_prompt")
    wanted = {name: chat[name] for name in (*fields, "reasoning_effort") if chat.get(name) is not None}
    if chat.get("tool_choice") == "none":
        del wanted["tools"]  # a prompt without them
    counted = await tokenize(context, request, parse_body(TokenizeRequest, orjson.dumps(wanted)))
    return JSONResponse({"input_tokens": orjson.loads(counted.body)["count"]})


async def create_message(context: ServerContext, request: Request, body: MessagesRequest) -> Response:
    """Generates the next turn of a conversation."""
    form = MessagesAnswer(body.model, body.stop_sequences or ())
    chat = chat_of_messages(body) | {"max_tokens": body.max_tokens}
    return await answer_chat(context, request, chat, form)


def chat_of_messages(body: MessageCountRequest) -> dict[str, Any]:
    """The chat completion that a request asks for, without its limit.

    Raises:
        InvalidRequestError: it asks for something that this server has not.
    """
    refuse(body, mcp_servers="this server calls no other servers", container="this server runs no code")
    messages = [{"role": "system", "content": _system(body)}] if body.system else []
    for turn in body.messages:
        messages += _turn(turn)
    effort = (body.output_config or {}).get("effort")
    if (body.thinking or {}).get("type") == "disabled":
        effort = "none"
    chat = {
        "model": body.model,
        "messages": messages,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "stop": body.stop_sequences or None,
        "stream": body.stream,
        "reasoning_effort": effort,
        "response_format": _response_format(body),
        **_tools(body),
    }
    if messages[-1]["role"] == "assistant":  # the answer goes on from these words
        chat |= {"continue_final_message": True, "add_generation_prompt": False}
    return chat


def _system(body: MessageCountRequest) -> str:
    return text_of(body.system, ("text",), "system")


def _turn(turn: MessagesTurn) -> list[dict[str, Any]]:
    """A turn as messages: a tool's results are messages of their own."""
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content}]
    messages: list[dict[str, Any]] = []
    message: dict[str, Any] = {"role": turn.role, "content": ""}
    for block in turn.content:
        kind = block.get("type")
        if kind == "text":
            message["content"] += text_of([block], ("text",), "messages")
        elif kind == "thinking" and turn.role == "assistant":
            message["reasoning_content"] = message.get("reasoning_content", "") + str(
                block.get("thinking", "")
            )
        elif kind == "redacted_thinking" and turn.role == "assistant":
            continue  # only Anthropic's own servers can read it
        elif kind == "tool_use" and turn.role == "assistant":
            message.setdefault("tool_calls", []).append(_call(block))
        elif kind == "tool_result" and turn.role == "user":
            result = text_of(block.get("content"), ("text",), "messages")
            messages.append({"role": "tool", "tool_call_id": str(block.get("tool_use_id")),
                             "content": f"Error: {result}" if block.get("is_error") else result})  # fmt: skip
        else:
            raise InvalidRequestError(f"a block of type {kind!r} cannot be read as {turn.role}", "messages")
    if message["content"] or len(message) > 2 or not messages:
        messages.append(message)
    return messages


def _call(block: dict[str, Any]) -> dict[str, Any]:
    function = {"name": str(block.get("name", "")), "arguments": json.dumps(block.get("input") or {})}
    return {"id": str(block.get("id", "")), "type": "function", "function": function}


def _tools(body: MessageCountRequest) -> dict[str, Any]:
    """The tools and which of them must be called."""
    choice = body.tool_choice or {"type": "auto"}
    if not body.tools:
        if choice.get("type") not in ("auto", "none"):
            raise InvalidRequestError("tool_choice needs tools", "tool_choice")
        return {}
    tools = []
    for number, tool in enumerate(body.tools):
        if tool.get("type") not in (None, "custom"):
            raise InvalidRequestError(f"this server has no tool {tool.get('type')!r}", f"tools.{number}")
        function = {"name": tool.get("name"), "description": tool.get("description"),
                    "parameters": tool.get("input_schema")}  # fmt: skip
        tools.append({"type": "function", "function": {k: v for k, v in function.items() if v is not None}})
    choices = {
        "auto": "auto",
        "any": "required",
        "none": "none",
        "tool": {"type": "function", "function": {"name": choice.get("name")}},
    }
    if str(choice.get("type")) not in choices:
        raise InvalidRequestError(
            f"tool_choice must have one of the types {', '.join(choices)}", "tool_choice"
        )
    parallel = not choice.get("disable_parallel_tool_use", False)
    return {"tools": tools, "tool_choice": choices[choice["type"]], "parallel_tool_calls": parallel}


def _response_format(body: MessageCountRequest) -> dict[str, Any] | None:
    form = (body.output_config or {}).get("format") or body.output_format
    if not form:
        return None
    form = object_of(form)
    if form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
        raise InvalidRequestError("a format needs type json_schema and a schema", "output_config.format")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": form["schema"]}}


class MessagesAnswer:
    """An answer as a `message` with blocks: thinking, text, and the use of tools."""

    media_type = "text/event-stream"

    def __init__(self, model: str, stop_sequences: Sequence[str]) -> None:
        self._stop_sequences = stop_sequences
        self._fields = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": model,
        }
        self._block: str | None = None
        """Type of the open block."""
        self._index = -1
        self._stop = self._stop_fields({"finish_reason": "stop"})
        self._usage = _usage({})

    def whole(self, completion: dict[str, Any]) -> dict[str, Any]:
        """Returns the message."""
        choice = completion["choices"][0]
        message, content = choice["message"], []
        if thoughts := message.get("reasoning_content"):
            content.append({"type": "thinking", "thinking": thoughts, "signature": ""})
        if message.get("content"):
            content.append({"type": "text", "text": message["content"]})
        for call in message.get("tool_calls") or ():
            content.append({"type": "tool_use", "id": call["id"], "name": call["function"]["name"],
                            "input": arguments_of(call["function"].get("arguments"))})  # fmt: skip
        usage = _usage(completion.get("usage") or {})
        return {**self._fields, "content": content, **self._stop_fields(choice), "usage": usage}

    def begin(self) -> Iterator[bytes]:
        """Opens the message. How many tokens the prompt has is known at the end."""
        message = {**self._fields, "content": [], **self._stop_fields({}), "usage": self._usage}
        yield server_sent_event("message_start", {"type": "message_start", "message": message})

    def add(self, chunk: dict[str, Any]) -> Iterator[bytes]:
        """Translates one chunk."""
        if chunk.get("usage"):
            self._usage = _usage(chunk["usage"])
        for choice in chunk.get("choices") or ():
            delta = choice["delta"]
            if thoughts := delta.get("reasoning_content"):
                yield from self._add_to("thinking", {"type": "thinking_delta", "thinking": thoughts})
            if text := delta.get("content"):
                yield from self._add_to("text", {"type": "text_delta", "text": text})
            for call in delta.get("tool_calls") or ():
                function = call.get("function") or {}
                if call.get("id"):
                    use = {
                        "type": "tool_use",
                        "id": call["id"],
                        "name": function.get("name", ""),
                        "input": {},
                    }
                    yield from self._open("tool_use", use)
                if arguments := function.get("arguments"):
                    yield from self._add_to(
                        "tool_use", {"type": "input_json_delta", "partial_json": arguments}
                    )
            if choice.get("finish_reason"):
                self._stop = self._stop_fields(choice)

    def end(self) -> Iterator[bytes]:
        """Closes the message."""
        yield from self._close()
        yield server_sent_event(
            "message_delta",
            {"type": "message_delta", "delta": self._stop, "usage": self._usage},
        )
        yield server_sent_event("message_stop", {"type": "message_stop"})

    def fail(self, message: str) -> Iterator[bytes]:
        """Ends the stream with an error."""
        yield server_sent_event("error", messages_error(500, message))

    def _stop_fields(self, choice: dict[str, Any]) -> dict[str, Any]:
        """Why the answer ended. A chat completion names the stop sequence, if known, as `stop_reason`."""
        finish, sequence = choice.get("finish_reason"), choice.get("stop_reason")
        if finish == "stop" and sequence in self._stop_sequences:
            return {"stop_reason": "stop_sequence", "stop_sequence": sequence}
        return {"stop_reason": finish and _STOP_REASONS.get(finish, "end_turn"), "stop_sequence": None}

    def _add_to(self, kind: str, delta: dict[str, Any]) -> Iterator[bytes]:
        if self._block != kind:
            empty = (
                {"type": "thinking", "thinking": "", "signature": ""}
                if kind == "thinking"
                else {"type": "text", "text": ""}
            )
            yield from self._open(kind, empty)
        yield self._event("content_block_delta", delta=delta)

    def _open(self, kind: str, block: dict[str, Any]) -> Iterator[bytes]:
        yield from self._close()
        self._block, self._index = kind, self._index + 1
        yield self._event("content_block_start", content_block=block)

    def _close(self) -> Iterator[bytes]:
        if self._block:
            yield self._event("content_block_stop")
        self._block = None

    def _event(self, kind: str, **fields: Any) -> bytes:
        return server_sent_event(kind, {"type": kind, "index": self._index, **fields})


def _usage(usage: dict[str, Any]) -> dict[str, int]:
    """Prompt tokens that were in the cache are counted apart, as the API does."""
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return {
        "input_tokens": (usage.get("prompt_tokens") or 0) - cached,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.get("completion_tokens") or 0,
    }
