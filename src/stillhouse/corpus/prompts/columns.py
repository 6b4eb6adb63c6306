"""A record's columns as a conversation.

    messages                    a list of {role, content, reasoning_content?}
    conversations               ShareGPT's list of {from, value}
    prompt (+ completion)       text, or lists of messages; a completion makes a finished exchange
    question | instruction | text   text; `input`, where there is one, follows it after an empty line

The first of these that a record has is taken, or the column that the caller names. The
other columns that hold plain values become tags: a gold `answer` beside a `question` is
material for a verifier, not something the teacher said.
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
    """The messages of a record and its remaining plain columns.

    Raises:
        CorpusError: no column fits, or what it holds is no conversation; the message starts with ``where``.
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
    wanted = (column,) if column else COLUMNS
    for name in wanted:
        if record.get(name) is not None:
            return name
    found = ", ".join(record) or "none"
    if column:
        raise CorpusError(f"{where}: there is no column {column!r}; columns: {found}")
    raise CorpusError(
        f"{where}: no column holds a prompt; looked for {', '.join(COLUMNS)}; columns: {found}",
        hint="Name the column with prompts.column.",
    )


def _messages(value: Any, where: str, name: str, role: str) -> list[Message]:
    """Text as one turn of ``role``, or a list of turns."""
    if isinstance(value, str) and name in ("messages", "conversations"):
        value = _list(value, where, name)
    if isinstance(value, str):
        value = _clean(value)
        return [assistant_message(value, None) if role == "assistant" else {"role": role, "content": value}]
    if not isinstance(value, list):
        raise CorpusError(f"{where}: {name} must be text or a list of messages, found {value!r:.60}")
    return [_message(item, where, f"{name}[{index}]") for index, item in enumerate(value)]


def _list(text: str, where: str, name: str) -> list[Any]:
    """The list of turns that CSV and some parquet files keep as JSON in a column."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{where}: {name} must be a list of messages, found text: {text!r:.60}") from error
    return value if isinstance(value, list) else [value]


def _message(item: Any, where: str, name: str) -> Message:
    if not isinstance(item, Mapping):
        raise CorpusError(f"{where}: {name} must be an object with role and content, found {item!r:.60}")
    said_by = item.get("role", item.get("from"))
    content = item.get("content", item.get("value"))
    if not isinstance(said_by, str) or said_by not in ROLES:
        raise CorpusError(f"{where}: {name} has the role {said_by!r}; known are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise CorpusError(f"{where}: the content of {name} must be text, found {content!r:.60}")
    if item.get("tool_calls") or item.get("function_call"):
        raise CorpusError(f"{where}: {name} calls a tool; tool calls are not supported")
    if ROLES[said_by] == "assistant":
        reasoning = item.get("reasoning_content")
        if not isinstance(reasoning, str | None):
            raise CorpusError(
                f"{where}: the reasoning_content of {name} must be text, found {reasoning!r:.60}"
            )
        return assistant_message(_clean(content), reasoning and _clean(reasoning))
    return {"role": ROLES[said_by], "content": _clean(content)}


def _clean(text: str) -> str:
    """``text`` with lone surrogates (half an emoji) as ``?``: no tokenizer and no parquet can hold them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _check(messages: list[Message], where: str, name: str) -> None:
    if not any(message["role"] == "user" and message["content"].strip() for message in messages):
        raise CorpusError(f"{where}: {name} has no user turn with text")
    if messages[-1]["role"] == "system":
        raise CorpusError(f"{where}: {name} ends with a system prompt; nobody is asked anything")
