"""What verifiers take and give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What a model said, with what is known about the question."""

    text: str
    """Without the thoughts, where those came apart."""
    reasoning: str | None = None
    """The thoughts, where they came apart from the text."""
    tags: Mapping[str, Any] = field(default_factory=dict)
    """The prompt's other columns: the reference answer, the dataset's entry."""
    messages: Sequence[Mapping[str, Any]] = ()
    """The conversation before the answer."""


@dataclass(frozen=True)
class Score:
    """A verdict from 0 (wrong) to 1 (right)."""

    value: float
    detail: str = ""
    """What was found, for a reader."""
    failed: bool = False
    """The verifier itself came to no verdict (it crashed, hung, or said no finite number): the value is 0."""


class VerifierFailure(Exception):
    """A verifier came to no verdict about one answer; never leaves this room."""
