"""A prompt: a conversation for the teacher to continue, with its id and tags."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillhouse.models import Message


@dataclass(frozen=True)
class Prompt:
    """A conversation for the teacher to continue, or a finished one."""

    id: str
    """SHA-256 of the messages (and tools) in canonical JSON, 32 hex digits."""
    messages: list[Message]
    source: str
    """The file or package of the prompt."""
    tags: dict[str, Any] = field(default_factory=dict)
    """The record's other columns, e.g. a reference answer for a verifier."""
    tools: list[dict[str, Any]] = field(default_factory=list)
    """Functions that the calls of a finished conversation use, in OpenAI's form."""
    where: str = ""
    """Its place, e.g. ``questions.jsonl:12``."""

    @property
    def is_finished(self) -> bool:
        """Whether the last message is the assistant's, so that nothing is left to ask."""
        return self.messages[-1]["role"] == "assistant"

    @property
    def question(self) -> list[Message]:
        """The conversation without its answer, if it has one."""
        return list(self.messages[:-1] if self.is_finished else self.messages)


@dataclass(frozen=True)
class RejectedRecord:
    """A record of a file that is no prompt."""

    id: str
    """SHA-256 of its place and the reason, 32 hex digits."""
    where: str
    """Its place, e.g. ``questions.jsonl:12``."""
    reason: str
    """:data:`UNREADABLE` or :data:`BAD_ANSWER`."""
    detail: str
    """What is wrong with it; starts with its place."""
    source: str
    """The file or package."""


UNREADABLE = "unreadable record"
BAD_ANSWER = "labelled as a bad answer"
