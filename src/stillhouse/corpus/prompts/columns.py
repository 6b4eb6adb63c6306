"""Converts a record's columns to a conversation. docs/corpus.md has the forms as a table.

    messages, conversations     a list of {role, content} or {from, value}: OpenAI's, ShareGPT's
    prompt, question, instruction, text     the question, as text or a list of messages
    completion, output, response, chosen    its answer, which makes a finished conversation

The first question that a record has is used, or the column that the caller names. A `system` prompt, the
`history` of earlier turns, the `tools` that calls use, and the reasoning of an answer beside it join the
conversation. A gold `answer` is for a verifier, and is the teacher's answer only if the caller says so. Other
columns with plain values become tags, and the rest are named as unused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillhouse.corpus.messages import assistant_message
from stillhouse.corpus.prompts.message_fields import (
    MEDIA,
    THOUGHTS,
    clean,
    convert_message,
    convert_tools,
)
from stillhouse.errors import CorpusError

if TYPE_CHECKING:
    from stillhouse.models import Message

LISTS = ("messages", "conversations", "conversation")
COLUMNS = (*LISTS, "prompt", "question", "instruction", "text", "chosen")
ANSWERS = ("completion", "output", "response", "chosen")
ADDITIONS = ("input", "context")
"""Columns that follow an `instruction`, after an empty line."""
SYSTEM = ("system", "system_prompt")
LABELS = ("label", "kto_tag")
"""KTO's judgement of an answer: true is good, false is bad."""
AUTO, NONE = "auto", "none"


class BadAnswerError(CorpusError):
    """The file says that the answer of a record is bad."""


@dataclass(frozen=True)
class Conversation:
    """A record as a conversation."""

    messages: list[Message]
    tools: list[dict[str, Any]]
    """Functions that the conversation may call, in OpenAI's form."""
    tags: dict[str, Any]
    """The other plain columns."""
    form: str
    """Name of the form, e.g. ``Alpaca``."""
    columns: tuple[str, ...]
    """The columns that were read."""
    unused: frozenset[str]
    """Columns and message fields with a value that are not used."""


def conversation(
    record: Mapping[str, Any],
    column: str | None = None,
    *,
    answer: str = AUTO,
    gold: Collection[str] = (),
) -> Conversation:
    """The conversation of a record.

    Args:
        column: of the question (default: the first of :data:`COLUMNS`).
        answer: column of its answer; ``none`` leaves the last answer out; ``auto`` takes the first of
            :data:`ANSWERS` that is not ``gold``.
        gold: columns that a verifier reads.

    Raises:
        BadAnswerError: the record is labelled as a bad example.
        CorpusError: there is no such column, or it holds no conversation.
    """
    reader = _RecordReader(record)
    name = reader.find((column,) if column else COLUMNS)
    if name is None:
        raise _no_question(record, column)
    messages = reader.messages(name, "user")
    if name.lower() == "chosen" and not isinstance(reader.columns["chosen"], list):
        raise CorpusError(
            "chosen is text without a prompt; it must be a list of messages, or follow a prompt"
        )
    if name.lower() == "instruction" and messages:
        for addition in filter(None, (reader.text(key) for key in ADDITIONS)):
            messages[-1]["content"] += f"\n\n{addition}"
    if not _ends_with_answer(messages):
        messages = _with_answer(messages, reader, answer, gold)
    messages = [*reader.history(), *messages]
    system = next(filter(None, (reader.text(key) for key in SYSTEM)), None)
    if system and messages and messages[0]["role"] == "system":
        reader.unused.add(next(key for key in SYSTEM if reader.text(key)))
    elif system:
        messages = [{"role": "system", "content": system}, *messages]
    _check(messages, name)
    if media := reader.media():
        raise CorpusError(f"the record has {media}, which are not supported: only text can be learned")
    finished = _ends_with_answer(messages)
    if finished and (label := reader.bad_label()):
        raise BadAnswerError(f"{label} is false: a bad answer, which is not learned")
    if finished:
        messages = _learned_part(messages, name)
        if answer == NONE:
            messages = _without_last_answer(messages)
    tools = reader.tools()
    uses_tools = tools or any(m["role"] == "tool" or m.get("tool_calls") for m in messages)
    if uses_tools and not _ends_with_answer(messages):
        raise CorpusError(
            f"{name} asks with tools or after tool calls, which no teacher is asked here: only finished "
            "conversations may have them"
        )
    return Conversation(
        messages, tools, reader.tags(), reader.form(name), tuple(reader.used), frozenset(reader.unused)
    )


def _no_question(record: Mapping[str, Any], column: str | None) -> CorpusError:
    present = ", ".join(record) or "none"
    if column:
        return CorpusError(f"there is no column {column!r}; columns: {present}")
    return CorpusError(
        f"no column holds a prompt; looked for {', '.join(COLUMNS)}; columns: {present}",
        hint="Name the column with prompts.column.",
    )


class _RecordReader:
    """Reads the columns of one record, and remembers which it has used."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        # pandas writes a missing value as NaN.
        self.record = {key: value for key, value in record.items() if not _is_missing(value)}
        self.names = {key.lower(): key for key in reversed(self.record)}
        self.columns = {lower: self.record[key] for lower, key in self.names.items()}
        self.used: list[str] = []
        self.answered = False
        self.unused: set[str] = set()

    def find(self, names: Collection[str]) -> str | None:
        """The first of ``names`` that the record has; an exact name comes before one in other letters."""
        for name in names:
            if name in self.record:
                return name
            if name.lower() in self.names:
                return self.names[name.lower()]
        return None

    def messages(self, name: str, role: str) -> list[Message]:
        """The column as messages: text is one message of ``role``."""
        self._use(name)
        value = self.record[name]
        if isinstance(value, str) and name.lower() in LISTS:
            value = _list(value, name)
        if isinstance(value, str):
            text = clean(value)
            return [self._answer(text) if role == "assistant" else {"role": role, "content": text}]
        if isinstance(value, Mapping) and role == "assistant":  # LLaMA-Factory's `chosen`
            value = [value]
        if not isinstance(value, list):
            raise CorpusError(f"{name} must be text or a list of messages, found {value!r:.60}")
        return [convert_message(item, f"{name}[{i}]", self.unused) for i, item in enumerate(value)]

    def text(self, name: str) -> str | None:
        """The text of a column, or None where there is none."""
        value = self.columns.get(name)
        if not isinstance(value, str) or not value.strip():
            return None
        self._use(self.names[name])
        return clean(value)

    def history(self) -> list[Message]:
        """Earlier turns as LLaMA-Factory has them: a list of [question, answer]."""
        value = self.columns.get("history")
        if isinstance(value, str) and value.lstrip().startswith("[["):
            value = _list(value, "history")
        if not isinstance(value, list) or not value:
            return []
        self._use(self.names["history"])
        turns: list[Message] = []
        for pair in value:
            if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(t, str) for t in pair):
                raise CorpusError(f"history must be a list of [question, answer], found {pair!r:.60}")
            question, answer = map(clean, pair)
            turns += [{"role": "user", "content": question}, assistant_message(answer, None)]
        return turns

    def tools(self) -> list[dict[str, Any]]:
        """The functions that the conversation may call."""
        name = self.find(("tools", "functions"))
        if name is None or self.record[name] in ("", [], "[]", {}):
            return []
        self._use(name)
        return convert_tools(self.record[name], name)

    def bad_label(self) -> str | None:
        """The name of a label that calls the answer bad."""
        for name in LABELS:
            value = self.columns.get(name)
            if value is False or (isinstance(value, str) and value.strip().lower() == "false"):
                return self.names[name]
        return None

    def media(self) -> str | None:
        """The name of a column with images or sound; text there (an address, a name) is a tag."""
        found = ((key, self.columns.get(key)) for key in MEDIA)
        return next(
            (key for key, value in found if value and isinstance(value, list | Mapping | bytes)), None
        )

    def tags(self) -> dict[str, Any]:
        """The other plain columns; those that are not plain join the unused ones."""
        tags = {}
        for key, value in self.record.items():
            if key in self.used:
                continue
            if isinstance(value, str | int | float | bool):
                tags[key] = value
            elif value is not None and value not in ([], {}):
                self.unused.add(key)
        return tags

    def form(self, question: str) -> str:
        """The name of the form, by its ``question`` and the columns that were used."""
        used = {name.lower() for name in self.used}
        if question.lower() in LISTS:
            first = self.record[question][0] if isinstance(self.record[question], list) else None
            return "ShareGPT" if isinstance(first, Mapping) and "from" in first else "messages"
        if "chosen" in used:
            return "preference pairs"
        return (
            "Alpaca"
            if {"instruction", "output"} <= used
            else "questions and answers"
            if self.answered
            else "questions"
        )

    def _answer(self, text: str) -> Message:
        """An answer, with the reasoning that a column beside it holds."""
        thoughts = next(filter(None, (self.text(key) for key in THOUGHTS)), None)
        return assistant_message(text, thoughts)

    def _use(self, name: str) -> None:
        if name not in self.used:
            self.used.append(name)


def _with_answer(
    messages: list[Message], reader: _RecordReader, answer: str, gold: Collection[str]
) -> list[Message]:
    """The conversation with the answer that another column holds, if it may be taken for one."""
    if answer == NONE:
        return messages
    names = [name for name in ANSWERS if name not in gold] if answer == AUTO else [answer]
    for name in names:
        found = reader.find((name,))
        if found is None or found in reader.used or reader.record[found] in (None, "", []):
            continue
        if isinstance(reader.record[found], str) and not reader.record[found].strip():
            continue
        answers = reader.messages(found, "assistant")
        reader.answered = True
        if any(message["role"] == "user" for message in answers):  # the whole conversation
            return answers
        return messages + answers
    return messages


def _ends_with_answer(messages: list[Message]) -> bool:
    return bool(messages) and messages[-1]["role"] == "assistant"


def _learned_part(messages: list[Message], name: str) -> list[Message]:
    """A finished conversation up to the last answer that is learned; empty earlier answers are context.

    Raises:
        CorpusError: no answer is learned.
    """
    last = len(messages) - 1
    for message in messages[:-1]:
        empty = not (
            message["content"].strip() or message.get("reasoning_content") or message.get("tool_calls")
        )
        if message["role"] == "assistant" and empty:
            message["weight"] = 0
    while last >= 0 and (messages[last]["role"] != "assistant" or messages[last].get("weight") == 0):
        last -= 1
    if last < 0:
        raise CorpusError(f"{name}: no answer is learned: the weight of each is 0")
    return messages[: last + 1]


def _without_last_answer(messages: list[Message]) -> list[Message]:
    last_user = max(i for i, message in enumerate(messages) if message["role"] in ("user", "tool"))
    return messages[: last_user + 1]


def _list(text: str, name: str) -> list[Any]:
    """Parses the list of messages that CSV and some parquet files hold as JSON text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{name} must be a list of messages, found text: {text!r:.60}") from error
    return value if isinstance(value, list) else [value]


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _check(messages: list[Message], name: str) -> None:
    if not any(message["role"] == "user" and message["content"].strip() for message in messages):
        raise CorpusError(f"{name} has no user message with text")
    if messages[-1]["role"] == "system":
        raise CorpusError(f"{name} ends with a system prompt, so it asks nothing")
