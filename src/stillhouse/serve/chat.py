"""A chat's messages and tools, and how its answer begins."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from stillhouse.models import REASONING_END, Request, Sampling, ToolCallFormat
from stillhouse.serve.engine import Engine
from stillhouse.serve.request_parsing import Refused, fitting, followed, needs, sampling_of
from stillhouse.serve.schema import ChatRequest, Message, ToolCall, ToolName
from stillhouse.serve.tool_parser import Calls, is_text


def turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates know them; a tool's result tells the name of its tool, too."""
    names = {call.id: call.function.name for message in messages for call in message.tool_calls or ()}
    made = [_turn(message) for message in messages]
    for turn, message in zip(made, messages, strict=True):
        if message.role == "tool" and message.tool_call_id:
            turn["tool_call_id"] = message.tool_call_id
            if name := names.get(message.tool_call_id):
                turn["name"] = name
    return made


def _turn(message: Message) -> dict[str, Any]:
    content = message.content
    if isinstance(content, list):
        if any(part.get("type") != "text" or not isinstance(part.get("text"), str) for part in content):
            raise Refused("only parts of type text are understood", "messages")
        content = "".join(part["text"] for part in content)
    made: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": content or "",
    }
    if message.reasoning_content and message.role == "assistant":
        made["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        if message.role != "assistant":
            raise Refused("only an assistant's messages have tool_calls", "messages")
        made["tool_calls"] = [_called(call) for call in message.tool_calls]
    return made


def _called(call: ToolCall) -> dict[str, Any]:
    try:
        arguments = json.loads(call.function.arguments)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict) or not is_text(json.dumps(arguments, ensure_ascii=False)):
        raise Refused(f"the arguments of the call {call.id!r} are no JSON object", "messages")
    return {
        "id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tools:
    """What a chat has to do with tools."""

    offered: tuple[dict[str, Any], ...] = ()
    """The `function` objects of the tools that the model may call."""
    forced: tuple[dict[str, Any], ...] = ()
    """Those of them of which it must call one; none where it need not."""
    mentioned: bool = False
    """Whether the conversation has calls or results in it."""

    @property
    def shown(self) -> list[dict[str, Any]] | None:
        """For the chat template."""
        return [{"type": "function", "function": tool} for tool in self.offered] or None


def tools_of(asked: ChatRequest) -> Tools:
    """The tools of a chat; Refused where they contradict each other or the rest."""
    if asked.functions is not None or asked.function_call is not None:
        raise Refused("functions and function_call are no longer understood; send tools", "functions")
    mentioned = any(message.tool_calls or message.role == "tool" for message in asked.messages)
    tools = [tool.function.model_dump(exclude_none=True) for tool in asked.tools or ()]
    if not tools and asked.tool_choice not in (None, "none", "auto"):
        raise Refused("tool_choice needs tools", "tool_choice")
    if not tools or asked.tool_choice == "none":
        return Tools(mentioned=mentioned)
    if len({tool["name"] for tool in tools}) < len(tools):
        raise Refused("two tools have the same name", "tools")
    forced = tools if asked.tool_choice == "required" else []
    if isinstance(asked.tool_choice, ToolName):
        name = asked.tool_choice.function.name
        forced = [tool for tool in tools if tool["name"] == name]
        if not forced:
            raise Refused(f"there is no tool {name!r}", "tool_choice")
    elif not forced and asked.response_format and asked.response_format.type != "text":
        raise Refused(
            "an answer that must follow response_format cannot call tools; "
            "set tool_choice to none or to required",
            "tool_choice",
        )
    for place, tool in enumerate(tools):
        if tool in forced:
            followed(tool.get("parameters") or {"type": "object"}, f"tools.{place}.function.parameters")
    if len(forced) > 1:
        followed(ToolCallFormat("", "", "arguments").schema(forced), "tools")
    return Tools(tuple(tools), tuple(forced), mentioned)


@dataclasses.dataclass(frozen=True)
class Beginning:
    """How an answer to a chat begins, and what it must follow."""

    ids: tuple[int, ...]
    sampling: Sampling
    schema: dict[str, Any] | None
    inside: bool
    """Whether the prompt ends in the model's thoughts."""
    form: ToolCallFormat | None
    """Of the calls that the answer may have."""
    names: tuple[str, ...]
    """Of the tools that it may call."""
    said: str
    """What of the answer is in the prompt: where it must call, a call's opening mark."""

    @property
    def marks(self) -> tuple[str, ...]:
        """What of the answer is to be told even where it is a special token."""
        return self.form.delimiters if self.form else ()

    def calls(self) -> Calls | None:
        """What finds calls in one such answer."""
        calls = Calls(self.form, self.names) if self.form else None
        if calls:
            calls.add(self.said)
        return calls


def beginning(
    engine: Engine,
    asked: ChatRequest,
    messages: list[dict[str, Any]],
    tools: Tools,
    schema: dict[str, Any] | None,
) -> Beginning:
    """The prompt of a chat. An answer that must follow a schema, or must call, begins without thoughts."""
    from stillhouse.models import with_guidance_options

    if tools.offered or tools.mentioned:
        needs(engine, asked.model, "tools", "tools")
    form = engine.prompts.template.tool_call_format if tools.offered else None
    sampling = sampling_of(asked, asked.max_completion_tokens or asked.max_tokens or engine.context_length)
    if form and not (asked.parallel_tool_calls or tools.forced):
        sampling = dataclasses.replace(sampling, stop=(*sampling.stop, *form.delimiters[1:]))
    said = ""
    if form and tools.forced:
        schema, said = with_guidance_options(form.schema(tools.forced)), form.prefix
    if schema:
        needs(engine, asked.model, "schema", "tool_choice" if said else "response_format")
    question, given = Request("of this request", messages, sampling), _settings(asked, tools)
    ids = fitting(engine.prompts.encode(question, **given))
    inside = engine.prompts.ends_in_reasoning(ids)
    if schema and (inside or said):
        begun = f"\n{REASONING_END}\n\n{said}" if inside else said
        ids, inside = fitting(engine.prompts.encode(question, answer_prefix=begun, **given)), False
    names = tuple(tool["name"] for tool in tools.offered)
    return Beginning(tuple(ids), sampling, schema, inside, form, names, said)


def _settings(asked: ChatRequest, tools: Tools) -> dict[str, Any]:
    """Further variables for the chat template."""
    given: dict[str, Any] = {"tools": tools.shown} if tools.shown else {}
    if asked.reasoning_effort is not None:
        given["reasoning_effort"] = asked.reasoning_effort
        if asked.reasoning_effort == "none":
            given["enable_thinking"] = False
    return given
