"""Failed requests, stored beside the corpus, one JSON line each.

A final failure (the prompt is longer than the context) is not asked again. Any other (the server was down)
is asked again by the next run. The latest line of a request counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stillhouse.corpus.schema import Row
from stillhouse.errors import ApiError, ContextLengthError, CorpusError, ModelError, StillhouseError
from stillhouse.journal import Journal, read_journal


class Failures:
    """``failures.jsonl`` in a corpus's directory."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "failures.jsonl"

    def add(self, row: Row, error: StillhouseError) -> str:
        """Records that the request of ``row`` failed; returns the reason, one of a few fixed phrases."""
        reason = _reason(error)
        journal = Journal(self.path)
        try:
            line = row | {"reason": reason, "detail": str(error), "final": isinstance(error, ModelError)}
            journal.append(line)
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

    def final(self) -> set[str]:
        """Ids of requests that must not be asked again."""
        return {id for id, line in self.latest().items() if line["final"]}


def _reason(error: StillhouseError) -> str:
    if isinstance(error, ContextLengthError):
        return "longer than the context"
    if isinstance(error, ApiError):
        return "no answer from the API"
    return type(error).__name__
