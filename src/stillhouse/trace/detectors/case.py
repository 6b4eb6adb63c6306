"""The inputs of one detector: one suspect, one teacher and its log, under one plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from stillhouse.errors import CorpusError
from stillhouse.trace.bundle.files import TRANSCRIPTS
from stillhouse.trace.delivered_log import Log
from stillhouse.trace.plan import TeacherPlan, TracePlan
from stillhouse.trace.suspects.base import GenerateFn, Suspect
from stillhouse.trace.suspects.open import open_suspect
from stillhouse.trace.suspects.resumable import with_journal


@dataclass(frozen=True)
class Case:
    """Everything that a test about one teacher is carried out on."""

    plan: TracePlan
    teacher: TeacherPlan
    log: Log
    """Of the tested and the placebo accounts."""
    suspect: Suspect
    directory: Path
    """The bundle."""

    def journal(self, test: str, number: int = 0) -> Path:
        """Where the answers of a test in progress are kept; removed when its transcript is written."""
        return self.directory / TRANSCRIPTS / self.teacher.name / f"{test}-{number}.journal"

    def resumable(
        self, test: str, model: Suspect, ask: GenerateFn | None = None, number: int = 0
    ) -> GenerateFn:
        """``ask``, by default the model's `generate`, such that a test resumes after an interruption.

        Only answers of models on this machine are kept here: an API keeps its own journal.
        """
        ask = ask or model.generate
        if not model.can.weights:
            return ask
        return with_journal(f"{test} ({self.teacher.name})", ask, self.journal(test, number))

    def log_of(self, accounts: Sequence[str]) -> Log:
        """The rows of the log that went to some accounts; an empty list selects all.

        Raises:
            CorpusError: no row did.
        """
        if not accounts:
            return self.log
        rows = tuple(row for row in self.log.rows if row.account in accounts)
        if not rows:
            raise CorpusError(f"no output in the log went to {', '.join(accounts)}")
        return replace(self.log, rows=rows)

    def open_reference(self) -> AbstractContextManager[Suspect | None]:
        """The first reference model, closed on exit; None where the plan has none."""
        return self.open(self.plan.references[0] if self.plan.references else None)

    @contextmanager
    def open(self, model: str | None) -> Iterator[Suspect | None]:
        """A model, closed on exit; None for None."""
        if model is None:
            yield None
            return
        opened = open_suspect(model, seed=self.plan.seed)
        try:
            yield opened
        finally:
            opened.close()
