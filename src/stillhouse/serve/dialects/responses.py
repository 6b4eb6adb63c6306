"""`POST /v1/responses`: OpenAI's Responses API (https://platform.openai.com/docs/api-reference/responses)."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from stillhouse.serve.api.schema import RequestBody, Text
from stillhouse.serve.context import ServerContext
from stillhouse.serve.dialects.base import (
    answer_chat,
    object_of,
    refuse,
    server_sent_event,
    text_of,
)
from stillhouse.serve.errors import InvalidRequestError

_NOT_KEPT = "this server keeps no answers: send the whole conversation as input"
_LOGPROBS = "message.output_text.logprobs"


class ResponsesRequest(RequestBody):
    """`POST /v1/responses`."""

    model: str
    input: Text | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=10_000)]
    instructions: Text | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    stream: bool | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    """Of type `function`."""
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    """`format`: `text`, `json_object` or `json_schema`; `verbosity` can only be `medium`."""
    reasoning: dict[str, Any] | None = None
    """`effort`, for templates that use it; `none` turns reasoning off where the template can."""
    include: list[str] | None = None
    """`message.output_text.logprobs`; other entries have no effect."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    metadata: dict[str, Any] | None = None
    """Returned as it is."""
    max_tool_calls: Any = None
    """No effect, as `stream_options` and `client_metadata`: there are no tools of the server's own."""
    stream_options: Any = None
    client_metadata: Any = None
    previous_response_id: Any = None
    """Refused, as are `conversation`, `background` and `prompt`: nothing is kept here."""
    conversation: Any = None
    background: Any = None
    prompt: Any = None
    truncation: str | None = None
    """`auto` is refused: a prompt that is too long is an error."""


async def create_response(context: ServerContext, request: Request, body: ResponsesRequest) -> Response:
    """Generates the next turn of a conversation."""
    return await answer_chat(context, request, chat_of_response(body), ResponseAnswer(body))


def chat_of_response(body: ResponsesRequest) -> dict[str, Any]:
    """The chat completion that a request asks for.

    Raises:
        InvalidRequestError: it asks for something that this server has not.
    """
    refuse(body, previous_response_id=_NOT_KEPT, conversation=_NOT_KEPT, prompt=_NOT_KEPT,
           background="this server keeps no answers: leave background out")  # fmt: skip
    if body.truncation == "auto":
        raise InvalidRequestError("a prompt is never truncated here; leave truncation out", "truncation")
    if (body.text or {}).get("verbosity") not in (None, "medium"):
        raise InvalidRequestError("the verbosity cannot be chosen; leave it out", "text.verbosity")
    messages = [{"role": "system", "content": body.instructions}] if body.instructions else []
    items = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    for number, item in enumerate(items):
        _add_item(messages, item, f"input.{number}")
    has_logprobs = _LOGPROBS in (body.include or ())
    return {
        "model": body.model,
        "messages": messages,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "max_completion_tokens": body.max_output_tokens,
        "stream": body.stream,
        "reasoning_effort": (body.reasoning or {}).get("effort"),
        "response_format": _response_format((body.text or {}).get("format")),
        "logprobs": has_logprobs or None,
        "top_logprobs": (body.top_logprobs or None) if has_logprobs else None,
        **_tools(body),
    }


def _add_item(messages: list[dict[str, Any]], item: dict[str, Any], where: str) -> None:
    """Adds one item of the input to the messages; thoughts and calls join the assistant's message."""
    kind = item.get("type") or "message"
    if kind == "message" and item.get("role") in ("user", "system", "developer", "assistant"):
        text = text_of(item.get("content"), ("input_text", "output_text", "text"), where)
        if (
            item["role"] == "assistant"
            and messages
            and messages[-1]["role"] == "assistant"
            and not messages[-1]["content"]
        ):
            messages[-1]["content"] = text
        else:
            messages.append({"role": item["role"], "content": text})
    elif kind == "reasoning":
        thoughts = text_of(item.get("content") or [], ("reasoning_text", "text"), where)
        if thoughts:
            messages.append({"role": "assistant", "content": "", "reasoning_content": thoughts})
    elif kind == "function_call":
        function = {"name": str(item.get("name", "")), "arguments": item.get("arguments") or "{}"}
        call = {"id": str(item.get("call_id", "")), "type": "function", "function": function}
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        output = text_of(item.get("output"), ("input_text", "output_text", "text"), where)
        messages.append({"role": "tool", "tool_call_id": str(item.get("call_id", "")), "content": output})
    elif kind == "item_reference":
        raise InvalidRequestError(_NOT_KEPT, where)
    else:
        raise InvalidRequestError(
            f"an item of type {kind!r} with role {item.get('role')!r} cannot be read", where
        )


def _tools(body: ResponsesRequest) -> dict[str, Any]:
    if not body.tools:
        if body.tool_choice not in (None, "auto", "none"):
            raise InvalidRequestError("tool_choice needs tools", "tool_choice")
        return {}
    tools = []
    for number, tool in enumerate(body.tools):
        if tool.get("type") != "function":
            raise InvalidRequestError(f"this server has no tool {tool.get('type')!r}", f"tools.{number}")
        function = {
            name: tool[name] for name in ("name", "description", "parameters") if tool.get(name) is not None
        }
        tools.append({"type": "function", "function": function})
    choice: Any = body.tool_choice
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        listed = choice.get("tools")
        allowed = [object_of(tool).get("name") for tool in listed] if isinstance(listed, list) else []
        tools = [tool for tool in tools if tool["function"].get("name") in allowed]
        choice = choice.get("mode", "auto")
    elif isinstance(choice, dict):
        if choice.get("type") != "function":
            raise InvalidRequestError(f"this server has no tool {choice.get('type')!r}", "tool_choice")
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    return {"tools": tools, "tool_choice": choice, "parallel_tool_calls": body.parallel_tool_calls}


def _response_format(form: Any) -> dict[str, Any] | None:
    if not form or object_of(form).get("type") == "text":
        return None
    form = object_of(form)
    if form.get("type") == "json_schema":
        return {
            "type": "json_schema",
            "json_schema": {key: form[key] for key in ("name", "schema", "strict") if key in form},
        }
    if form.get("type") == "json_object":
        return {"type": "json_object"}
    raise InvalidRequestError(f"there is no format {form.get('type')!r}", "text.format")


class ResponseAnswer:
    """An answer as a `response` with items: reasoning, a message, and calls of functions."""

    media_type = "text/event-stream"

    def __init__(self, body: ResponsesRequest) -> None:
        self._fields = {
            "id": f"resp_{secrets.token_hex(16)}",
            "object": "response",
            "created_at": int(time.time()),
            "model": body.model,
            "background": False,
            "error": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": (body.reasoning or {}).get("effort"), "summary": None},
            "store": False,
            "temperature": body.temperature,
            "text": body.text or {"format": {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": body.top_p,
            "truncation": "disabled",
        }
        self._output: list[dict[str, Any]] = []
        self._is_open = False
        """Whether the last item is still being written."""
        self._finish: str | None = None
        self._usage: dict[str, Any] | None = None
        self._sequence = 0

    def whole(self, completion: dict[str, Any]) -> dict[str, Any]:
        """Returns the response."""
        choice = completion["choices"][0]
        message, output = choice["message"], []
        if thoughts := message.get("reasoning_content"):
            output.append(
                _item("reasoning", content=[{"type": "reasoning_text", "text": thoughts}], summary=[])
            )
        if message.get("content") or not (output or message.get("tool_calls")):
            logprobs = (choice.get("logprobs") or {}).get("content") or []
            output.append(
                _item("message", role="assistant", content=[_text(message.get("content") or "", logprobs)])
            )
        for call in message.get("tool_calls") or ():
            function = call["function"]
            output.append(_item("function_call", call_id=call["id"], name=function["name"],
                                arguments=function.get("arguments") or "{}"))  # fmt: skip
        usage = _usage(completion.get("usage") or {})
        return self._response(output, choice["finish_reason"], usage)

    def begin(self) -> Iterator[bytes]:
        """Opens the response."""
        opened = {
            **self._fields,
            "status": "in_progress",
            "incomplete_details": None,
            "output": [],
            "usage": None,
        }
        yield self._event("response.created", response=opened)
        yield self._event("response.in_progress", response=opened)

    def add(self, chunk: dict[str, Any]) -> Iterator[bytes]:
        """Translates one chunk."""
        if chunk.get("usage"):
            self._usage = _usage(chunk["usage"])
        for choice in chunk.get("choices") or ():
            delta = choice["delta"]
            if thoughts := delta.get("reasoning_content"):
                yield from self._add_text("reasoning", "reasoning_text", thoughts, [])
            logprobs = (choice.get("logprobs") or {}).get("content") or []
            if delta.get("content") or (logprobs and not delta.get("tool_calls")):
                yield from self._add_text("message", "output_text", delta.get("content") or "", logprobs)
            for call in delta.get("tool_calls") or ():
                yield from self._add_call(call)
            self._finish = choice.get("finish_reason") or self._finish

    def end(self) -> Iterator[bytes]:
        """Closes the response."""
        if not self._output:
            yield from self._add_text("message", "output_text", "", [])
        status = "incomplete" if self._finish == "length" else "completed"
        yield from self._close(status)
        response = self._response(self._output, self._finish or "stop", self._usage or _usage({}))
        yield self._event(f"response.{response['status']}", response=response)

    def fail(self, message: str) -> Iterator[bytes]:
        """Ends the stream with an error."""
        if self._is_open:
            self._is_open, self._output[-1]["status"] = False, "incomplete"
        error = {"code": "server_error", "message": message}
        failed = {**self._fields, "status": "failed", "error": error, "incomplete_details": None,
                  "output": self._output, "usage": self._usage}  # fmt: skip
        yield self._event("response.failed", response=failed)

    def _add_text(self, kind: str, part_type: str, text: str, logprobs: list[Any]) -> Iterator[bytes]:
        if not self._is_open or self._output[-1]["type"] != kind:
            more = {"summary": []} if kind == "reasoning" else {"role": "assistant"}
            yield from self._open(_item(kind, content=[], **more))
            part = _text("", []) if part_type == "output_text" else {"type": part_type, "text": ""}
            self._output[-1]["content"].append(part)
            yield self._part_event("response.content_part.added", part=dict(part))
        part = self._output[-1]["content"][0]
        part["text"] += text
        if part_type == "output_text":
            part["logprobs"] += logprobs
            yield self._part_event("response.output_text.delta", delta=text, logprobs=logprobs)
        else:
            yield self._part_event("response.reasoning_text.delta", delta=text)

    def _add_call(self, call: dict[str, Any]) -> Iterator[bytes]:
        function = call.get("function") or {}
        if call.get("id"):
            yield from self._open(
                _item("function_call", call_id=call["id"], name=function.get("name", ""), arguments="")
            )
        if arguments := function.get("arguments"):
            item = self._output[-1]
            item["arguments"] += arguments
            yield self._item_event(
                "response.function_call_arguments.delta", item_id=item["id"], delta=arguments
            )

    def _open(self, item: dict[str, Any]) -> Iterator[bytes]:
        yield from self._close("completed")
        self._output.append(item)
        self._is_open = True
        yield self._item_event("response.output_item.added", item={**item, "status": "in_progress"})

    def _close(self, status: str) -> Iterator[bytes]:
        if not self._is_open:
            return
        item = self._output[-1]
        self._is_open, item["status"] = False, status
        if item["type"] == "function_call":
            called = {"item_id": item["id"], "name": item["name"], "arguments": item["arguments"]}
            yield self._item_event("response.function_call_arguments.done", **called)
        else:
            part = item["content"][0]
            name = part["type"]
            more = {"logprobs": part["logprobs"]} if name == "output_text" else {}
            yield self._part_event(f"response.{name}.done", text=part["text"], **more)
            yield self._part_event("response.content_part.done", part=part)
        yield self._item_event("response.output_item.done", item=item)

    def _part_event(self, kind: str, **fields: Any) -> bytes:
        return self._item_event(kind, item_id=self._output[-1]["id"], content_index=0, **fields)

    def _item_event(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, output_index=len(self._output) - 1, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._sequence += 1
        return server_sent_event(kind, {"type": kind, "sequence_number": self._sequence - 1, **fields})

    def _response(self, output: list[dict[str, Any]], finish: str, usage: dict[str, Any]) -> dict[str, Any]:
        reasons = {"length": "max_output_tokens", "content_filter": "content_filter"}
        details = {"reason": reasons[finish]} if finish in reasons else None
        status = "incomplete" if details else "completed"
        if details and output:
            output[-1]["status"] = "incomplete"
        return {
            **self._fields,
            "status": status,
            "incomplete_details": details,
            "output": output,
            "usage": usage,
        }


def _item(kind: str, **fields: Any) -> dict[str, Any]:
    prefix = {"reasoning": "rs", "message": "msg", "function_call": "fc"}[kind]
    return {"id": f"{prefix}_{secrets.token_hex(12)}", "type": kind, "status": "completed", **fields}


def _text(text: str, logprobs: list[Any]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    """Tokens of the thoughts are among those of the output, and not counted apart."""
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return {
        "input_tokens": usage.get("prompt_tokens") or 0,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage.get("completion_tokens") or 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.get("total_tokens") or 0,
    }
