"""Conversations as lists of messages: what was asked, what was answered, what was thought.

Only text is kept: role, content, and an assistant's `reasoning_content`. Tool calls
and images are outside this schema and are refused where prompts are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillhouse.models import Message


def assistant_message(text: str, reasoning: str | None) -> Message:
    """The assistant's turn; thoughts inside the text are taken out unless they came apart from it."""
    from stillhouse.models import split_reasoning

    if reasoning is None:
        text, reasoning = split_reasoning(text)
    message: Message = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    return message


def user_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """All that the user said, turns joined by newlines; system prompts are boilerplate and stay out."""
    return "\n".join(message["content"] for message in messages if message["role"] == "user")


def answer_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """The last answer without its reasoning; empty where the assistant did not speak last."""
    return messages[-1]["content"] if messages and messages[-1]["role"] == "assistant" else ""
