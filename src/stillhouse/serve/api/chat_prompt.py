"""Builds the prompt of a chat: its messages, its tools, and the beginning of its answer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from stillhouse.models import REASONING_END, Request, Sampling, ToolCallFormat
from stillhouse.serve.api.errors import InvalidRequestError
from stillhouse.serve.api.request_parsing import check_schema, require_capability, require_ids, sampling_from
from stillhouse.serve.api.schema import ChatRequest, Message, ToolCall, ToolName
from stillhouse.serve.engines.base import Engine
from stillhouse.serve.tool_parser import ToolCallParser, is_encodable


def template_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Returns messages in the form that chat templates read; a tool's result also gets the tool's name."""
    names = {call.id: call.function.name for message in messages for call in message.tool_calls or ()}
    converted = [_template_message(message) for message in messages]
    for template_message, message in zip(converted, messages, strict=True):
        if message.role == "tool" and message.tool_call_id:
            template_message["tool_call_id"] = message.tool_call_id
            if name := names.get(message.tool_call_id):
                template_message["name"] = name
    return converted


def _template_message(message: Message) -> dict[str, Any]:
    content = message.content
    if isinstance(content, list):
        if any(part.get("type") != "text" or not isinstance(part.get("text"), str) for part in content):
            raise InvalidRequestError("only content parts of type text are supported", "messages")
        content = "".join(part["text"] for part in content)
    converted: dict[str, Any] = {
        # Templates know no developer role: it is OpenAI's newer name for the system prompt.
        "role": "system" if message.role == "developer" else message.role,
        "content": content or "",
    }
    if message.reasoning_content and message.role == "assistant":
        converted["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        if message.role != "assistant":
            raise InvalidRequestError("only an assistant's messages have tool_calls", "messages")
        converted["tool_calls"] = [_template_call(call) for call in message.tool_calls]
    return converted


def _template_call(call: ToolCall) -> dict[str, Any]:
    """A tool call with its arguments as an object, which templates write in their own form."""
    try:
        arguments = json.loads(call.function.arguments)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict) or not is_encodable(json.dumps(arguments, ensure_ascii=False)):
        raise InvalidRequestError(f"the arguments of the call {call.id!r} are not a JSON object", "messages")
    return {
        "id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ToolOptions:
    """The tools of a chat, and whether the model must call one."""

    offered: tuple[dict[str, Any], ...] = ()
    """The `function` objects of the tools that the model may call."""
    forced: tuple[dict[str, Any], ...] = ()
    """Those of which it must call one; empty if it need not call any."""
    in_conversation: bool = False
    """Whether the messages contain tool calls or results."""

    @property
    def for_template(self) -> list[dict[str, Any]] | None:
        """The offered tools in the form that chat templates read."""
        return [{"type": "function", "function": tool} for tool in self.offered] or None


def tool_options(body: ChatRequest) -> ToolOptions:
    """Returns the tools of a chat.

    Raises:
        InvalidRequestError: they contradict each other or the rest of the request.
    """
    if body.functions is not None or body.function_call is not None:
        raise InvalidRequestError("functions and function_call are not supported; send tools", "functions")
    in_conversation = any(message.tool_calls or message.role == "tool" for message in body.messages)
    tools = [tool.function.model_dump(exclude_none=True) for tool in body.tools or ()]
    if not tools and body.tool_choice not in (None, "none", "auto"):
        raise InvalidRequestError("tool_choice needs tools", "tool_choice")
    if not tools or body.tool_choice == "none":
        return ToolOptions(in_conversation=in_conversation)
    if len({tool["name"] for tool in tools}) < len(tools):
        raise InvalidRequestError("two tools have the same name", "tools")
    forced = _forced_tools(body, tools)
    for index, tool in enumerate(tools):
        if tool in forced:
            check_schema(tool.get("parameters") or {"type": "object"}, f"tools.{index}.function.parameters")
    if len(forced) > 1:
        # Each schema alone may be fine and all of them together too long.
        check_schema(ToolCallFormat("", "", "arguments").schema(forced), "tools")
    return ToolOptions(tuple(tools), tuple(forced), in_conversation)


def _forced_tools(body: ChatRequest, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tools of which `tool_choice` makes the model call one."""
    if isinstance(body.tool_choice, ToolName):
        name = body.tool_choice.function.name
        forced = [tool for tool in tools if tool["name"] == name]
        if not forced:
            raise InvalidRequestError(f"there is no tool {name!r}", "tool_choice")
        return forced
    if body.tool_choice == "required":
        return tools
    if body.response_format and body.response_format.type != "text":
        raise InvalidRequestError(
            "an answer that must follow response_format cannot call tools; "
            "set tool_choice to none or to required",
            "tool_choice",
        )
    return []


@dataclasses.dataclass(frozen=True)
class ChatPrompt:
    """The prompt of a chat, and how its answer is generated and parsed."""

    ids: tuple[int, ...]
    sampling: Sampling
    json_schema: dict[str, Any] | None
    starts_in_reasoning: bool
    """Whether the prompt ends with `<think>`."""
    call_format: ToolCallFormat | None
    """How the answer writes tool calls; None if it may have none."""
    tool_names: tuple[str, ...]
    """Names of the tools that it may call."""
    answer_prefix: str
    """The part of the answer that is already in the prompt: the opening mark of a forced tool call."""

    @property
    def preserved_tokens(self) -> tuple[str, ...]:
        """Special tokens that must stay in the answer's text, to be parsed."""
        return self.call_format.delimiters if self.call_format else ()

    def tool_parser(self) -> ToolCallParser | None:
        """Returns a new parser for one answer; None if it may have no tool calls."""
        if self.call_format is None:
            return None
        parser = ToolCallParser(self.call_format, self.tool_names)
        parser.add(self.answer_prefix)
        return parser


def build_chat_prompt(
    engine: Engine,
    body: ChatRequest,
    messages: list[dict[str, Any]],
    tools: ToolOptions,
    schema: dict[str, Any] | None,
) -> ChatPrompt:
    """Renders and tokenizes a chat. An answer that must follow a schema or call a tool skips reasoning."""
    from stillhouse.models import with_guidance_options

    if tools.offered or tools.in_conversation:
        require_capability(engine, body.model, "tools", "tools")
    call_format = engine.prompts.template.tool_call_format if tools.offered else None
    sampling = sampling_from(body, body.max_completion_tokens or body.max_tokens or engine.context_length)
    if call_format and not (body.parallel_tool_calls or tools.forced):
        # Stopping at the closing mark ends the answer after its first call.
        sampling = dataclasses.replace(sampling, stop=(*sampling.stop, *call_format.delimiters[1:]))
    answer_prefix = ""
    if call_format and tools.forced:
        schema, answer_prefix = with_guidance_options(call_format.schema(tools.forced)), call_format.prefix
    if schema:
        require_capability(
            engine, body.model, "schema", "tool_choice" if answer_prefix else "response_format"
        )
    request, variables = Request("of this request", messages, sampling), _template_variables(body, tools)
    ids = require_ids(engine.prompts.encode(request, **variables))
    starts_in_reasoning = engine.prompts.ends_in_reasoning(ids)
    if schema and (starts_in_reasoning or answer_prefix):
        # The schema constrains every generated token. What precedes the JSON (the end of reasoning, the
        # opening mark of a call) must therefore be part of the prompt.
        begun = f"\n{REASONING_END}\n\n{answer_prefix}" if starts_in_reasoning else answer_prefix
        ids = require_ids(engine.prompts.encode(request, answer_prefix=begun, **variables))
        starts_in_reasoning = False
    tool_names = tuple(tool["name"] for tool in tools.offered)
    return ChatPrompt(
        tuple(ids), sampling, schema, starts_in_reasoning, call_format, tool_names, answer_prefix
    )


def _template_variables(body: ChatRequest, tools: ToolOptions) -> dict[str, Any]:
    """Further variables for the chat template."""
    variables: dict[str, Any] = {"tools": tools.for_template} if tools.for_template else {}
    if body.reasoning_effort is not None:
        variables["reasoning_effort"] = body.reasoning_effort
        if body.reasoning_effort == "none":
            variables["enable_thinking"] = False
    return variables
