"""Input and output of verifiers: answers, scores and failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Answer:
    """An answer of a model, with the prompt's messages and tags."""

    text: str
    """Without the reasoning, if that is separate."""
    reasoning: str | None = None
    """The reasoning, if it is separate from the text."""
    tags: Mapping[str, Any] = field(default_factory=dict)
    """The prompt's other columns, e.g. the reference answer or the dataset's entry."""
    messages: Sequence[Mapping[str, Any]] = ()
    """The conversation before the answer."""


@dataclass(frozen=True)
class Score:
    """A score from 0 (wrong) to 1 (right)."""

    value: float
    detail: str = ""
    """The reason, for a person to read."""
    failed: bool = False
    """Whether the verifier failed (it crashed, hung, or returned no finite number); the value is then 0."""


class VerifierFailure(Exception):
    """A verifier could not score an answer; never leaves this package."""
