"""Converts a record's columns to a conversation.

    messages                    a list of {role, content, reasoning_content?}
    conversations               ShareGPT's list of {from, value}
    prompt (+ completion)       text, or lists of messages; a completion makes a finished exchange
    question | instruction | text   text; `input`, where there is one, follows it after an empty line

The first of these columns that a record has is used, or the one that the caller names. Other columns with
plain values become tags: a gold `answer` beside a `question` is for a verifier and is never taken for the
teacher's answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stillhouse.corpus.messages import assistant_message
from stillhouse.errors import CorpusError

if TYPE_CHECKING:
    from stillhouse.models import Message

COLUMNS = ("messages", "conversations", "prompt", "question", "instruction", "text")
COMPLETION = "completion"
ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "system": "system",
    "developer": "system",
}


def conversation(
    record: Mapping[str, Any], column: str | None, where: str
) -> tuple[list[Message], dict[str, Any]]:
    """The messages of a record, and its other plain columns as tags.

    Raises:
        CorpusError: there is no such column, or it holds no conversation; the message starts with ``where``.
    """
    name = _column(record, column, where)
    messages = _messages(record[name], where, name, "user")
    used = {name}
    if name == "prompt" and record.get(COMPLETION) is not None:
        messages += _messages(record[COMPLETION], where, COMPLETION, "assistant")
        used.add(COMPLETION)
    if name == "instruction" and record.get("input") and messages:
        messages[-1]["content"] += f"\n\n{_clean(str(record['input']))}"
        used.add("input")
    _check(messages, where, name)
    tags = {
        key: value
        for key, value in record.items()
        if key not in used and isinstance(value, str | int | float | bool)
    }
    return messages, tags


def _column(record: Mapping[str, Any], column: str | None, where: str) -> str:
    for name in (column,) if column else COLUMNS:
        if record.get(name) is not None:
            return name
    present = ", ".join(record) or "none"
    if column:
        raise CorpusError(f"{where}: there is no column {column!r}; columns: {present}")
    raise CorpusError(
        f"{where}: no column holds a prompt; looked for {', '.join(COLUMNS)}; columns: {present}",
        hint="Name the column with prompts.column.",
    )


def _messages(value: Any, where: str, name: str, role: str) -> list[Message]:
    """Text as one message of ``role``, or a list of messages."""
    if isinstance(value, str) and name in ("messages", "conversations"):
        value = _list(value, where, name)
    if isinstance(value, str):
        value = _clean(value)
        return [assistant_message(value, None) if role == "assistant" else {"role": role, "content": value}]
    if not isinstance(value, list):
        raise CorpusError(f"{where}: {name} must be text or a list of messages, found {value!r:.60}")
    return [_message(item, where, f"{name}[{index}]") for index, item in enumerate(value)]


def _list(text: str, where: str, name: str) -> list[Any]:
    """Parses the list of messages that CSV and some parquet files hold as JSON text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{where}: {name} must be a list of messages, found text: {text!r:.60}") from error
    return value if isinstance(value, list) else [value]


def _message(item: Any, where: str, name: str) -> Message:
    if not isinstance(item, Mapping):
        raise CorpusError(f"{where}: {name} must be an object with role and content, found {item!r:.60}")
    role = item.get("role", item.get("from"))
    content = item.get("content", item.get("value"))
    if not isinstance(role, str) or role not in ROLES:
        raise CorpusError(f"{where}: {name} has the role {role!r}; known are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise CorpusError(f"{where}: the content of {name} must be text, found {content!r:.60}")
    if item.get("tool_calls") or item.get("function_call"):
        raise CorpusError(f"{where}: {name} calls a tool; tool calls are not supported")
    if ROLES[role] == "assistant":
        reasoning = item.get("reasoning_content")
        if not isinstance(reasoning, str | None):
            raise CorpusError(
                f"{where}: the reasoning_content of {name} must be text, found {reasoning!r:.60}"
            )
        return assistant_message(_clean(content), reasoning and _clean(reasoning))
    return {"role": ROLES[role], "content": _clean(content)}


def _clean(text: str) -> str:
    """``text`` with lone surrogates (half an emoji) as ``?``: tokenizers and parquet cannot hold them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _check(messages: list[Message], where: str, name: str) -> None:
    if not any(message["role"] == "user" and message["content"].strip() for message in messages):
        raise CorpusError(f"{where}: {name} has no user message with text")
    if messages[-1]["role"] == "system":
        raise CorpusError(f"{where}: {name} ends with a system prompt, so it asks nothing")
