"""Conversations as lists of messages: role, content, and an assistant's `reasoning_content` and `tool_calls`.

An assistant's turn with a `weight` of 0 is context: it is not learned. Images and sound do not fit this
schema; reading prompts refuses them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillhouse.models import Message, Reply


def assistant_message(text: str, reasoning: str | None) -> Message:
    """An assistant message; splits reasoning off the text if it is not given separately."""
    from stillhouse.models import split_reasoning

    if reasoning is None:
        text, reasoning = split_reasoning(text)
    message: Message = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    return message


def reply_message(reply: Reply) -> Message:
    """The message of a reply, whose reasoning was split off where the prompt was known, and is not again."""
    return assistant_message(reply.text, reply.reasoning or "")


def user_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """The user's messages joined by newlines, without system prompts, which are boilerplate."""
    return "\n".join(message["content"] for message in messages if message["role"] == "user")


def answer_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """The last answer without its reasoning, its calls as JSON; empty if the assistant is not the last."""
    if not messages or messages[-1]["role"] != "assistant":
        return ""
    calls = messages[-1].get("tool_calls") or ()
    return "\n".join(filter(None, [messages[-1]["content"], *(json.dumps(c["function"]) for c in calls)]))


def without_weights(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The messages without `weight`, which is for training alone: neither templates nor APIs know it."""
    return [{key: value for key, value in message.items() if key != "weight"} for message in messages]
