"""Conversations as lists of messages: role, content, and an assistant's `reasoning_content`.

Only text is stored. Tool calls and images do not fit this schema; reading prompts refuses them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillhouse.models import Message


def assistant_message(text: str, reasoning: str | None) -> Message:
    """An assistant message; splits reasoning off the text if it is not given separately."""
    from stillhouse.models import split_reasoning

    if reasoning is None:
        text, reasoning = split_reasoning(text)
    message: Message = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    return message


def user_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """The user's messages joined by newlines, without system prompts, which are boilerplate."""
    return "\n".join(message["content"] for message in messages if message["role"] == "user")


def answer_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """The last answer without its reasoning; empty if the last message is not the assistant's."""
    return messages[-1]["content"] if messages and messages[-1]["role"] == "assistant" else ""
