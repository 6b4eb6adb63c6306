"""Answers of a test under way, kept part by part, so that a trace that was killed goes on within it.

Parts are asked in the order that the questions fix, and each is kept whole or not at all: a part that is
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
"""Answers of a part: more than run at once, so that few slots are idle."""
_TOLD = ("text", "reasoning", "finish_reason", "prompt_tokens", "completion_tokens")


class ResumableAnswers:
    """The parts of one long question.

    Args:
        path: the journal; None keeps nothing.
        questions: what fixes every part, JSON-able. A journal of other questions is begun anew.
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
        """Whether the next part was answered before."""
        return bool(self._known)

    def next(self, ask: Callable[[], list[Any]]) -> list[Any]:
        """The next part, JSON-able: as it was kept, or from ``ask``."""
        if self._known:
            return self._known.popleft()
        part = ask()
        if self._journal is not None:
            self._journal.append({"part": part})
        return part

    def close(self) -> None:
        """Closes the journal and leaves it in place."""
        if self._journal is not None:
            self._journal.close()


def with_journal(name: str, ask: GenerateFn, journal: Path | None) -> GenerateFn:
    """``ask`` with progress under ``name``, whose answers are kept in ``journal``."""

    def asked(requests: Sequence[Request]) -> list[Reply | StillhouseError]:
        questions = [[one.id, list(one.messages), asdict(one.sampling)] for one in requests]
        replies: list[Reply | StillhouseError] = []
        with (
            closing(ResumableAnswers(journal, questions)) as parts,
            console.progress(name, len(requests), "answers") as bar,
        ):
            for start in range(0, len(requests), BATCH):
                chunk = requests[start : start + BATCH]
                told = parts.next(lambda chunk=chunk: [_told(reply) for reply in ask(chunk)])
                replies += map(_heard, told)
                bar.advance(len(chunk))
        return replies

    return asked


def _told(reply: Reply | StillhouseError) -> dict[str, Any]:
    if isinstance(reply, StillhouseError):
        return {"error": str(reply)}
    return {name: getattr(reply, name) for name in _TOLD}


def _heard(told: dict[str, Any]) -> Reply | StillhouseError:
    return ModelError(told["error"]) if "error" in told else Reply(**told)
