"""How each test is put to the suspect and its transcript written: the one place that knows what they need."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from stillhouse.console import console
from stillhouse.errors import CorpusError, StillhouseError
from stillhouse.files import read_json_lines
from stillhouse.trace.bundle.commitments import now
from stillhouse.trace.bundle.files import RESAMPLES, TRANSCRIPTS, write_transcript
from stillhouse.trace.delivered_log import Log
from stillhouse.trace.plan import TeacherPlan, TracePlan
from stillhouse.trace.suspects.base import GenerateFn
from stillhouse.trace.suspects.resumable import with_journal

if TYPE_CHECKING:
    from stillhouse.models import Model, Reply, Request
    from stillhouse.trace.suspects.base import Suspect


@dataclass(frozen=True)
class Case:
    """What a test is carried out on."""

    plan: TracePlan
    teacher: TeacherPlan
    log: Log
    """Of the tested and the placebo accounts."""
    suspect: Suspect
    directory: Path
    """The bundle."""

    def journal(self, test: str, number: int = 0) -> Path:
        """Where answers of a test under way are kept; gone when its transcript is there."""
        return self.directory / TRANSCRIPTS / self.teacher.name / f"{test}-{number}.journal"

    def asking(self, test: str, model: Suspect, ask: GenerateFn | None = None, number: int = 0) -> GenerateFn:
        """Puts a test's requests to a model, by ``ask`` or else by its own `generate`.

        On this machine it goes on after an end in the middle; what an API answers is in its own journal.
        """
        ask = ask or model.generate
        if not model.can.weights:
            return ask
        return with_journal(f"{test} ({self.teacher.name})", ask, self.journal(test, number))


def observe(test: str, case: Case, path: Path) -> None:
    """Asks what ``test`` asks, and writes its transcript to ``path``."""
    begun = now()
    table = _OBSERVERS[test](case)
    write_transcript(path, table, begun, now())
    for journal in path.parent.glob(f"{test}-*.journal"):
        journal.unlink()


def _exchangeable(case: Case) -> pa.Table:
    """The tested accounts, then the placebo accounts, each asked whole or until it may stop."""
    from stillhouse.trace.detectors.exchangeable import judge as exchangeable
    from stillhouse.trace.resample import LogMark, planned_mark, read_resamples, resample
    from stillhouse.watermark import read_key

    section, teacher, seed = case.plan.tests.exchangeable, case.teacher, case.plan.seed
    assert section is not None
    if teacher.resamples is not None:
        resamples = read_resamples(teacher.resamples, {"log": case.log.hash})
    else:
        assert teacher.model is not None
        drawn, marked = case.directory / RESAMPLES / f"{teacher.name}.parquet", case.plan.tests.radioactivity
        mark = None
        if teacher.watermark_key is not None and marked is not None:
            mark = LogMark(planned_mark(marked, read_key(teacher.watermark_key)))
        resamples = resample(teacher.model, case.log, section.draws, seed, drawn, mark=mark)
    logs = [_of(case.log, teacher.accounts)]
    logs += [_of(case.log, [account]) for account in teacher.placebo_accounts]
    archived = teacher.model if section.score == "teacher" else None
    with _reference(case.plan) as reference, _opened(archived, case.plan) as itself:
        tables = [
            exchangeable.observe(
                case.suspect,
                log,
                resamples,
                scores=[section.score],
                reference=reference,
                teacher=itself,
                seed=seed,
                stop_at=case.plan.stop_at,
                public=_public_texts(case.plan),
                journal=case.journal("exchangeable", number),
            )
            for number, log in enumerate(logs)
        ]
    return pa.concat_tables(tables).replace_schema_metadata(tables[0].schema.metadata)


def _radioactivity(case: Case) -> pa.Table:
    from stillhouse.models import load_tokenizer, load_weights
    from stillhouse.trace.detectors import radioactivity

    section, reference = case.plan.tests.radioactivity, str(case.plan.suspect)
    assert section is not None and case.teacher.model is not None
    tokenizer, _ = load_tokenizer(case.teacher.model)
    rows = case.log.rows
    if section.mode == "open":
        with console.progress("radioactivity", len(rows), "outputs") as progress:
            return radioactivity.observe_open(
                load_weights(reference), rows, tokenizer, progress=progress.advance
            )
    with _answering(case) as ask:
        ask = case.asking("radioactivity", case.suspect, ask)
        return radioactivity.observe_closed(ask, rows, tokenizer, seed=case.plan.seed)


@contextmanager
def _answering(case: Case) -> Iterator[GenerateFn]:
    """How the suspect is asked for many answers: a GGUF file as llama.cpp runs it, which is quicker."""
    from stillhouse.models import open_model, parse_reference

    reference = str(case.plan.suspect)
    if not parse_reference(reference).is_gguf:
        yield case.suspect.generate
        return
    model = open_model(reference, seed=case.plan.seed)
    try:
        yield lambda requests: asyncio.run(_answers(model, requests))
    finally:
        asyncio.run(model.close())


async def _answers(model: Model, requests: Sequence[Request]) -> list[Reply | StillhouseError]:
    """An answer to each request, as many at once as the model takes."""
    gate = asyncio.Semaphore(model.concurrency)

    async def some(batch: Sequence[Request]) -> list[Reply | StillhouseError]:
        async with gate:
            return list(await model.generate(batch))

    size = model.max_batch
    batches = [requests[place : place + size] for place in range(0, len(requests), size)]
    return [reply for replies in await asyncio.gather(*map(some, batches)) for reply in replies]


def _canaries(case: Case) -> pa.Table:
    from stillhouse.trace.detectors import canaries

    assert case.teacher.canaries is not None
    return canaries.observe(case.suspect, canaries.read_canaries(case.teacher.canaries))


def _rephrasings(case: Case) -> pa.Table:
    from stillhouse.trace.detectors import rephrasings

    section = case.plan.tests.rephrasings
    assert section is not None and section.texts is not None
    texts = rephrasings.read_versions(section.texts)
    with _reference(case.plan) as reference:
        return rephrasings.observe(case.suspect, texts, reference=reference)


def _identity(case: Case) -> pa.Table:
    from stillhouse.trace.detectors import identity

    section = case.plan.tests.identity
    assert section is not None
    return identity.observe(case.asking("identity", case.suspect), section.languages)


def _style(case: Case) -> pa.Table:
    """The suspect's and the references' answers beside the teacher's, which the log holds."""
    from stillhouse.models import Reply
    from stillhouse.trace.detectors import style
    from stillhouse.trace.suspects.open import open_suspect

    plan, section = case.plan, case.plan.tests.style
    assert section is not None
    asked = [row for row in _of(case.log, case.teacher.accounts).rows if row.prompt]
    order = np.random.default_rng(plan.seed).permutation(len(asked))[: section.prompts]
    rows = {asked[place].id: asked[place] for place in order}
    others = {name: open_suspect(name, seed=plan.seed) for name in plan.references}
    others |= {
        other.name: open_suspect(other.model, seed=plan.seed)
        for other in plan.teachers
        if other.model is not None and other.name != case.teacher.name
    }

    def delivered(requests: Sequence[Request]) -> list[Reply | StillhouseError]:
        return [Reply(rows[request.id].output, None, "stop", 0, 0) for request in requests]

    models: dict[str, tuple[style.Group, GenerateFn]] = {
        "suspect": ("suspect", case.asking("style", case.suspect))
    }
    models[case.teacher.name] = ("candidate", delivered)
    for number, (name, model) in enumerate(others.items(), 1):
        group = "reference" if name in plan.references else "candidate"
        models[name] = (group, case.asking("style", model, number=number))
    table = style.observe(models, {id: row.prompt for id, row in rows.items()})
    for model in others.values():
        model.close()
    return table


def _weights(case: Case) -> pa.Table:
    from stillhouse.models import load_weights
    from stillhouse.trace.detectors import weights_lineage

    assert case.teacher.model is not None
    texts = [row.output for row in case.log.rows]
    return weights_lineage.observe(
        load_weights(str(case.plan.suspect)), load_weights(case.teacher.model), texts
    )


def _training_order(case: Case) -> pa.Table:
    from stillhouse.trace.detectors import training_order

    section = case.plan.tests.training_order
    assert section is not None and section.texts is not None
    try:
        texts = [str(line["text"]) for line in read_json_lines(section.texts)]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CorpusError(f"{section.texts} does not hold JSON lines with `text`: {error}") from error
    with _reference(case.plan) as reference:
        return training_order.observe(case.suspect, texts, reference=reference)


def _reference(plan: TracePlan) -> AbstractContextManager[Suspect | None]:
    """The first reference model, opened; None where the plan has none."""
    return _opened(plan.references[0] if plan.references else None, plan)


@contextmanager
def _opened(model_reference: str | None, plan: TracePlan) -> Iterator[Suspect | None]:
    from stillhouse.trace.suspects.open import open_suspect

    if model_reference is None:
        yield None
        return
    model = open_suspect(model_reference, seed=plan.seed)
    try:
        yield model
    finally:
        model.close()


def _of(log: Log, accounts: Sequence[str]) -> Log:
    """The part of a log that went to some accounts; none means all.

    Raises:
        CorpusError: nothing did.
    """
    if not accounts:
        return log
    rows = tuple(row for row in log.rows if row.account in accounts)
    if not rows:
        raise CorpusError(f"no output in the log went to {', '.join(accounts)}")
    return replace(log, rows=rows)


def _public_texts(plan: TracePlan) -> Iterator[str] | None:
    if not plan.public:
        return None
    return (Path(path).read_text("utf-8", "replace") for path in plan.public)


_OBSERVERS: dict[str, Callable[[Case], pa.Table]] = {
    "exchangeable": _exchangeable,
    "radioactivity": _radioactivity,
    "canaries": _canaries,
    "rephrasings": _rephrasings,
    "style": _style,
    "identity": _identity,
    "weights": _weights,
    "training_order": _training_order,
}
