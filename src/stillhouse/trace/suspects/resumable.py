"""A journal of a suspect's answers, so that a killed trace resumes within a test.

Batches are asked in the order that the questions fix, and each is kept whole or not at all. A batch that is
asked again is the same batch, and gives the same numbers to the last bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stillhouse.console import console
from stillhouse.errors import ModelError, StillhouseError
from stillhouse.hashing import sha256_json
from stillhouse.journal import Journal, read_journal
from stillhouse.models import Reply, Request
from stillhouse.trace.suspects.base import GenerateFn

BATCH = 128
"""Answers kept together: more than run at once, so that few slots are idle."""
_REPLY_FIELDS = ("text", "reasoning", "finish_reason", "prompt_tokens", "completion_tokens")


class ResumableAnswers:
    """The batches of answers to one list of questions.

    Args:
        path: the journal; None keeps nothing.
        questions: determines every batch, JSON-able. The journal of other questions is discarded.

    Raises:
        CorpusError: the journal is damaged.
    """

    def __init__(self, path: Path | None, questions: Any) -> None:
        self._known: deque[list[Any]] = deque()
        self._journal = None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {"questions": sha256_json(questions)}
        lines = list(read_journal(path))
        if lines[:1] != [head]:
            path.unlink(missing_ok=True)
        self._journal = Journal(path)
        if lines[:1] == [head]:
            self._known.extend(line["part"] for line in lines[1:])
        else:
            self._journal.append(head)

    @property
    def knows_next(self) -> bool:
        """Whether the journal holds the next batch."""
        return bool(self._known)

    def next(self, ask: Callable[[], list[Any]]) -> list[Any]:
        """The next batch, JSON-able: from the journal, or from ``ask``."""
        if self._known:
            return self._known.popleft()
        batch = ask()
        if self._journal is not None:
            self._journal.append({"part": batch})
        return batch

    def close(self) -> None:
        """Closes the journal and leaves it in place."""
        if self._journal is not None:
            self._journal.close()


def with_journal(name: str, generate: GenerateFn, journal: Path | None) -> GenerateFn:
    """``generate`` with progress under ``name``, whose answers are kept in ``journal``."""

    def generate_resumably(requests: Sequence[Request]) -> list[Reply | StillhouseError]:
        questions = [[one.id, list(one.messages), asdict(one.sampling)] for one in requests]
        replies: list[Reply | StillhouseError] = []
        with (
            closing(ResumableAnswers(journal, questions)) as answers,
            console.progress(name, len(requests), "answers") as bar,
        ):
            for start in range(0, len(requests), BATCH):
                batch = requests[start : start + BATCH]
                lines = answers.next(lambda batch=batch: [_to_json(reply) for reply in generate(batch)])
                replies += map(_from_json, lines)
                bar.advance(len(batch))
        return replies

    return generate_resumably


def _to_json(reply: Reply | StillhouseError) -> dict[str, Any]:
    if isinstance(reply, StillhouseError):
        return {"error": str(reply)}
    return {name: getattr(reply, name) for name in _REPLY_FIELDS}


def _from_json(line: dict[str, Any]) -> Reply | StillhouseError:
    return ModelError(line["error"]) if "error" in line else Reply(**line)
