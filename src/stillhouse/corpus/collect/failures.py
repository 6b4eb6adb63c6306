"""Failed requests, stored beside the corpus, one JSON line each.

A failure that belongs to the prompt (it is longer than the context, or a content policy refuses it) is final:
the prompt is not asked again. Any other belongs to the provider, the network or the request's parameters, and
the next run asks again. The latest line of a request counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillhouse.corpus.schema import Row
from stillhouse.errors import (
    ApiError,
    ContextLengthError,
    CorpusError,
    ModelError,
    ParameterError,
    PromptRefusedError,
    StillhouseError,
)
from stillhouse.journal import Journal, read_journal
from stillhouse.models.backends.server_errors import speaks_of_content

REASONS: tuple[tuple[type[StillhouseError], str, bool], ...] = (
    (ContextLengthError, "longer than the context", True),
    (PromptRefusedError, "refused by a content policy", True),
    (ParameterError, "refused parameter", False),
    (ModelError, "refused request", False),
    (ApiError, "no answer from the API", False),
)
"""Each kind of failure, its reason (a fixed phrase), and whether it belongs to the prompt; the first that
fits counts."""
_FINAL = {reason for _, reason, belongs_to_prompt in REASONS if belongs_to_prompt}
_OLD_REASON = "ModelError"
"""Of all refusals in the lines of version 0.2.0, which called each of them final."""


class Failures:
    """``failures.jsonl`` in a corpus's directory."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "failures.jsonl"

    def add(self, row: Row, error: StillhouseError) -> str:
        """Records that the request of ``row`` failed; returns the reason, one of a few fixed phrases."""
        reason = _reason(error)
        journal = Journal(self.path)
        try:
            journal.append(row | {"reason": reason, "detail": str(error), "final": reason in _FINAL})
        finally:
            journal.close()
        return reason

    def latest(self) -> dict[str, dict[str, Any]]:
        """The last failure of each request, by id.

        Raises:
            CorpusError: the file is damaged.
        """
        lines = list(read_journal(self.path))
        if damaged := next((line for line in lines if not {"id", "final"} <= line.keys()), None):
            raise CorpusError(f"{self.path} is damaged: a line without id or final: {damaged!r:.80}")
        return {line["id"]: line for line in lines}

    def final(self) -> dict[str, dict[str, Any]]:
        """The last failures of requests that must not be asked again, by id."""
        return {id: line for id, line in self.latest().items() if _is_final(line)}


def describe_failures(failed: Mapping[str, int], details: Mapping[str, str]) -> str:
    """`12 failed: …` in the server's words; several reasons are listed with their numbers."""
    total = sum(failed.values())
    if len(failed) == 1:
        [reason] = failed
        return f"{total} failed: {details.get(reason, reason)}"
    reasons = (f"{count} {reason} ({details.get(reason, '')})" for reason, count in failed.items())
    return f"{total} failed: {'; '.join(reasons)}"


def _is_final(line: dict[str, Any]) -> bool:
    if line.get("reason") == _OLD_REASON:
        return bool(line["final"]) and speaks_of_content(str(line.get("detail")))
    return bool(line["final"])


def _reason(error: StillhouseError) -> str:
    reasons = (reason for kind, reason, _ in REASONS if isinstance(error, kind))
    return next(reasons, type(error).__name__)
