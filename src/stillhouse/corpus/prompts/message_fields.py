"""Converts one message of a file to the form that a corpus stores.

Every field is used, refuses the row, or is named: what is neither used nor harmless is added to the names of
unused fields, which the user sees once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stillhouse.corpus.messages import assistant_message
from stillhouse.errors import CorpusError

if TYPE_CHECKING:
    from stillhouse.models import Message

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot", "ai"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
    "function_call": "call",  # LLaMA-Factory: an assistant's turn whose text is a call
}
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Names under which APIs and datasets keep an answer's reasoning apart from its text."""
LOSS_FLAGS = ("weight", "train", "training", "trainable", "loss")
"""Fields that say whether an assistant's turn is learned (1 or true) or only context (0 or false)."""
_PARTIAL_LOSS = ("train_detail", "training_detail", "loss_mask", "loss_weight", "mask", "masks")
MEDIA = ("image", "images", "audio", "audios", "video", "videos", "file", "files", "attachments")
_TEXT_PARTS = ("text", "input_text", "output_text")
_THOUGHT_PARTS = ("thinking", "reasoning")


def convert_message(item: Any, name: str, unused: set[str]) -> Message:
    """The message ``item`` as role, content and, for assistants, reasoning, calls and a weight of 0.

    Args:
        name: its place in the record, for errors, e.g. ``messages[2]``.
        unused: receives the names of fields with a value that are not used.

    Raises:
        CorpusError: it is no message, or a field of it cannot be used.
    """
    if not isinstance(item, Mapping):
        raise CorpusError(f"{name} must be an object with role and content, found {item!r:.60}")
    fields = {key: value for key, value in item.items() if value is not None}
    role = _role(fields, name)
    used = {"role", "from", "content", "value"}
    calls = _calls(fields, name, used)
    content, thoughts = _content(fields, name, calls)
    if role == "call":
        role, content, calls = "assistant", "", _calls_in_text(content, name)
    message: Message = {"role": role, "content": content}
    if role == "assistant":
        thoughts = _thoughts(fields, thoughts, name, used)
        message = assistant_message(content, thoughts)
        if calls:
            message["tool_calls"] = calls
    elif calls:
        raise CorpusError(f"{name} calls a tool, but its role is {role}")
    if role == "tool":
        message |= {key: clean(str(fields[key])) for key in ("name", "tool_call_id") if fields.get(key)}
        used |= {"name", "tool_call_id"}
    if _is_context_only(fields, role, name, used):
        message["weight"] = 0
    if media := next((key for key in MEDIA if fields.get(key)), None):
        raise CorpusError(f"{name} has {media}, which are not supported: only text can be learned")
    unused |= {
        f"{name.partition('[')[0]}.{key}" for key, value in fields.items() if key not in used and _says(value)
    }
    return message


def convert_tools(value: Any, name: str) -> list[dict[str, Any]]:
    """The tools of a record in OpenAI's form; they may be JSON text.

    Raises:
        CorpusError: they are no list of functions.
    """
    value = _parsed(value, name, "a list of tools")
    tools = value if isinstance(value, list) else [value]
    converted = []
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise CorpusError(f"{name} must be a list of functions with a name, found {tool!r:.60}")
        converted.append(clean({"type": "function", "function": dict(function)}))
    return converted


def clean(value: Any) -> Any:
    """``value`` with lone surrogates (half an emoji) as ``?``: tokenizers and parquet cannot hold them."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, Mapping):
        return {clean(key): clean(item) for key, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, list) else value


def _role(fields: Mapping[str, Any], name: str) -> str:
    role = fields.get("role", fields.get("from"))
    known = ROLES.get(role.lower()) if isinstance(role, str) else None
    if known is None:
        raise CorpusError(f"{name} has the role {role!r}; known are {', '.join(ROLES)}")
    return known


def _content(fields: Mapping[str, Any], name: str, calls: list[Any]) -> tuple[str, str | None]:
    """The text of a message, and the thoughts among the parts of its content."""
    content = fields.get("content", fields.get("value"))
    if content is None and calls:
        return "", None
    if content is None and isinstance(fields.get("refusal"), str):
        raise CorpusError(f"{name} is a refusal: {fields['refusal']!r:.60}")
    if isinstance(content, list):
        texts: list[str] = []
        thoughts: list[str] = []
        for part in content:
            kind, text = _part(part, name)
            (thoughts if kind in _THOUGHT_PARTS else texts).append(text)
        return clean("".join(texts)), clean("".join(thoughts)) if thoughts else None
    if not isinstance(content, str):
        raise CorpusError(f"the content of {name} must be text, found {content!r:.60}")
    return clean(content), None


def _part(part: Any, name: str) -> tuple[str, str]:
    """The kind and text of one part of a content that is a list."""
    if isinstance(part, str):
        return "text", part
    kind = part.get("type", "text") if isinstance(part, Mapping) else None
    if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
        return "text", part["text"]
    if kind in _THOUGHT_PARTS:
        thought = next((part[key] for key in (*_THOUGHT_PARTS, "text") if part.get(key) is not None), "")
        if isinstance(thought, list):  # Mistral's API nests text parts in a thinking part
            thought = "".join(_part(inner, name)[1] for inner in thought)
        if isinstance(thought, str):
            return kind, thought
    raise CorpusError(f"the content of {name} must be text, found a part {part!r:.60}")


def _thoughts(fields: Mapping[str, Any], in_content: str | None, name: str, used: set[str]) -> str | None:
    """The reasoning of an answer, by any of its names."""
    found = {"content": in_content} if in_content else {}
    for key in THOUGHTS:
        value = fields.get(key)
        if not isinstance(value, str | None):
            raise CorpusError(f"the {key} of {name} must be text, found {value!r:.60}")
        if value is not None:
            used.add(key)
            found[key] = clean(value)
    texts = {key: text for key, text in found.items() if text.strip()}
    if len({text.strip() for text in texts.values()}) > 1:
        raise CorpusError(f"{name} has different reasoning in {' and '.join(texts)}")
    # An empty field says that there is none; then marks in the text are the answer's own.
    return next(iter((texts or found).values()), None)


def _is_context_only(fields: Mapping[str, Any], role: str, name: str, used: set[str]) -> bool:
    """Whether the file says that this assistant's turn must not be learned.

    Raises:
        CorpusError: it says something that training cannot follow.
    """
    if partial := next((key for key in _PARTIAL_LOSS if _says(fields.get(key))), None):
        raise CorpusError(
            f"{name} has {partial}, which is not supported: a turn is learned as a whole or not at all",
            hint="Give the turn a weight of 0 or 1, or remove the field.",
        )
    values = {key: fields[key] for key in LOSS_FLAGS if key in fields}
    used.update(values)
    for key, value in values.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise CorpusError(f"{name} has {key} {value!r}; only 0 (context) and 1 (learned) are supported")
        if role != "assistant" and value and key != "weight":
            raise CorpusError(
                f"{name} has {key} {value!r}, but only the assistant's turns are learned",
                hint="objective.loss_on: all learns every turn.",
            )
    if len({bool(value) for value in values.values()}) > 1:
        raise CorpusError(f"{name} contradicts itself: {values}")
    return role == "assistant" and any(not value for value in values.values())


def _calls(fields: Mapping[str, Any], name: str, used: set[str]) -> list[dict[str, Any]]:
    """The tool calls of a message, their arguments as objects."""
    used |= {"tool_calls", "function_call"}
    value = fields.get("tool_calls") or ([fields["function_call"]] if fields.get("function_call") else [])
    value = _parsed(value, f"the tool_calls of {name}", "a list of tool calls")
    if not isinstance(value, list):
        raise CorpusError(f"the tool_calls of {name} must be a list, found {value!r:.60}")
    return [_call(call, name) for call in value]


def _calls_in_text(text: str, name: str) -> list[dict[str, Any]]:
    value = _parsed(text, name, "a tool call")
    return [_call(call, name) for call in (value if isinstance(value, list) else [value])]


def _call(call: Any, name: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise CorpusError(f"{name} calls a tool without a name: {call!r:.60}")
    arguments = _parsed(function.get("arguments") or {}, f"the tool call of {name}", "arguments as an object")
    if not isinstance(arguments, Mapping):
        raise CorpusError(
            f"the tool call of {name} must have arguments as an object, found {arguments!r:.60}"
        )
    converted = {"type": "function", "function": {"name": function["name"], "arguments": dict(arguments)}}
    return clean(({"id": str(call["id"])} if call.get("id") else {}) | converted)


def _parsed(value: Any, name: str, expected: str) -> Any:
    """``value``, read as JSON where it is text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{name} must be {expected}, found text: {value!r:.60}") from error


def _says(value: Any) -> bool:
    """Whether a field has a value: neither null nor empty."""
    return value is not None and value not in ("", [], {})
