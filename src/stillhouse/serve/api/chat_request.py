"""The OpenAI API's chat request as a task."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from stillhouse.models import Message as TemplateMessage
from stillhouse.serve.api.json_schemas import has_schema, output_schema
from stillhouse.serve.api.request_parsing import penalties_from, sampling_from
from stillhouse.serve.api.schema import ChatRequest, Message, ToolCall, ToolName
from stillhouse.serve.errors import InvalidRequestError
from stillhouse.serve.generation.chat_task import NO_LIMIT, ChatTask, ToolOptions, choose_tools
from stillhouse.serve.generation.tool_parser import is_encodable


async def chat_task(body: ChatRequest) -> ChatTask:
    """Returns the task of a chat request.

    Raises:
        InvalidRequestError: its fields contradict each other, or cannot be honoured.
    """
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequestError("top_logprobs needs logprobs: true", "top_logprobs")
    # Compiling a large schema takes up to seconds: not in the event loop. A plain chat skips the thread.
    has_schemas = body.tools or has_schema(body)
    tools, schema = (
        await asyncio.to_thread(_tools_and_schema, body) if has_schemas else _tools_and_schema(body)
    )
    return ChatTask(
        model=body.model,
        messages=tuple(template_messages(body.messages)),
        sampling=sampling_from(body, body.max_completion_tokens or body.max_tokens or NO_LIMIT),
        penalties=penalties_from(body),
        choices=body.n,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        tools=tools,
        output_schema=schema,
        template_variables=_template_variables(body),
        reasoning_effort=body.reasoning_effort,
        continue_final_message=_continues(body),
    )


def template_messages(messages: Sequence[Message]) -> list[TemplateMessage]:
    """Returns messages in the form that chat templates read; a tool's result also gets the tool's name."""
    names = {call.id: call.function.name for message in messages for call in message.tool_calls or ()}
    converted = [_template_message(message) for message in messages]
    for template_message, message in zip(converted, messages, strict=True):
        if message.role == "tool" and message.tool_call_id:
            template_message["tool_call_id"] = message.tool_call_id
            if name := names.get(message.tool_call_id):
                template_message["name"] = name
    return converted


def _template_message(message: Message) -> TemplateMessage:
    content = message.content
    if isinstance(content, list):
        if any(part.get("type") != "text" or not isinstance(part.get("text"), str) for part in content):
            raise InvalidRequestError("only content parts of type text are supported", "messages")
        content = "".join(part["text"] for part in content)
    if message.function_call is not None:
        raise InvalidRequestError("function_call is not supported; send tool_calls", "messages")
    converted: TemplateMessage = {
        # Templates know no developer role: it is OpenAI's newer name for the system prompt.
        "role": "system" if message.role == "developer" else message.role,
        "content": content or message.refusal or "",
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
        # Servers and models write no arguments as an empty text, too.
        arguments = json.loads(call.function.arguments.strip() or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict) or not is_encodable(json.dumps(arguments, ensure_ascii=False)):
        raise InvalidRequestError(f"the arguments of the call {call.id!r} are not a JSON object", "messages")
    return {
        "id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}
    }  # fmt: skip


def _tools_and_schema(body: ChatRequest) -> tuple[ToolOptions, dict[str, Any] | None]:
    """The tools of a chat, and the schema that its answer must follow."""
    if body.functions is not None or body.function_call is not None:
        raise InvalidRequestError("functions and function_call are not supported; send tools", "functions")
    tools = [tool.function.model_dump(exclude_none=True) for tool in body.tools or ()]
    choice, name = body.tool_choice, None
    if isinstance(choice, ToolName):
        choice, name = None, choice.function.name
    options = choose_tools(tools, choice, name=name, single_call=not body.parallel_tool_calls)
    return options, None if options.forced else output_schema(body)


def _template_variables(body: ChatRequest) -> dict[str, Any]:
    variables = dict(body.chat_template_kwargs)
    if body.thinking is not None:
        variables.setdefault("enable_thinking", body.thinking.type == "enabled")
    if body.enable_thinking is not None:
        variables.setdefault("enable_thinking", body.enable_thinking)
    return variables


def _continues(body: ChatRequest) -> bool:
    """Whether the last message is to be continued."""
    marked = [message.prefix or message.partial for message in body.messages]
    if any(marked[:-1]):
        raise InvalidRequestError("only the last message can be continued", "messages")
    continues = body.continue_final_message or marked[-1]
    if not body.add_generation_prompt and not continues:
        raise InvalidRequestError(
            "add_generation_prompt false needs continue_final_message", "add_generation_prompt"
        )
    return continues
