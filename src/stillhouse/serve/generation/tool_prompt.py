"""Tools for models whose chat template has none: a prompt describes them.

The tools are listed in the system message, in the words of Hermes and Qwen, on which many models were
trained. A call is a JSON object between `<tool_call>` and `</tool_call>`, and a result stands in a user's
message between `<tool_response>` and `</tool_response>`. How well a model follows this is its own matter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from stillhouse.errors import ChatTemplateError
from stillhouse.models import Message, ToolCallFormat

TOOL_CALL_FORMAT = ToolCallFormat("<tool_call>\n", "\n</tool_call>", "arguments")
"""How a model is asked to write a call."""
TOOL_PROMPT = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> \
XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def with_tool_prompt(
    messages: Sequence[Message], tools: Sequence[dict[str, Any]], render: Callable[..., str]
) -> list[Message]:
    """Returns the conversation with its tools, calls and results as text.

    Args:
        tools: the offered tools' `function` objects; empty if the conversation only contains old calls.
        render: renders messages with the model's template.
    """
    converted = _merge_results([_as_text(message) for message in messages])
    if not tools:
        return converted
    lines = [json.dumps({"type": "function", "function": tool}, ensure_ascii=False) for tool in tools]
    prompt = TOOL_PROMPT.format(tools="\n".join(lines))
    if converted and converted[0]["role"] == "system":
        head, rest = converted[0], converted[1:]
        return [{**head, "content": f"{head['content']}\n\n{prompt}"}, *rest]
    if _accepts_system(render):
        return [{"role": "system", "content": prompt}, *converted]
    # Gemma's templates, among others, refuse the role.
    index = next((n for n, message in enumerate(converted) if message["role"] == "user"), None)
    if index is None:
        return [{"role": "user", "content": prompt}, *converted]
    first = converted[index]
    converted[index] = {**first, "content": f"{prompt}\n\n{first['content']}"}
    return converted


def _as_text(message: Message) -> Message:
    """The message without the fields that templates without tools do not know."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = [
        TOOL_CALL_FORMAT.prefix
        + json.dumps(
            {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}, ensure_ascii=False
        )
        + TOOL_CALL_FORMAT.suffix
        for call in message.get("tool_calls", ())
    ]
    content = "\n".join(filter(None, [message["content"], *calls]))
    return {key: value for key, value in message.items() if key != "tool_calls"} | {"content": content}


def _merge_results(messages: list[Message]) -> list[Message]:
    """Joins a tool's results with the user's message after them: templates want alternating roles."""
    merged: list[Message] = []
    for message in messages:
        previous = merged[-1] if merged else None
        if (
            previous
            and previous["role"] == message["role"] == "user"
            and previous["content"].endswith("</tool_response>")
        ):
            merged[-1] = {**previous, "content": f"{previous['content']}\n{message['content']}"}
        else:
            merged.append(message)
    return merged


def _accepts_system(render: Callable[..., str]) -> bool:
    """Whether the template writes a system message."""
    mark = "system-probe"
    try:
        return mark in render([{"role": "system", "content": mark}, {"role": "user", "content": "x"}])
    except ChatTemplateError:
        return False
