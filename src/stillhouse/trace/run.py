"""Runs a trace from plan to bundle: commits, observes, judges, writes and signs.

A trace that was interrupted resumes: transcripts and journals hold every answer, and nothing is asked twice.
The verdict is computed once, at the end, from all transcripts.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse.console import console
from stillhouse.files import atomic_path, atomic_write, storage_errors, take_lock
from stillhouse.hashing import sha256_file
from stillhouse.models import parse_reference
from stillhouse.provenance import versions
from stillhouse.trace.access import Access, teacher_access
from stillhouse.trace.bundle.commitments import COMMITMENTS, commit, now, secret_files
from stillhouse.trace.bundle.files import (
    OPENED,
    PLAN,
    REPORT,
    read_transcript,
    started,
    transcript_path,
    write_evidence,
    write_transcript,
)
from stillhouse.trace.bundle.schema import (
    Commitments,
    CommitmentsRecord,
    DeliveredLogRecord,
    Evidence,
    ModelRecord,
    TeacherRecord,
    evidence_text,
)
from stillhouse.trace.delivered_log import Log, read_log
from stillhouse.trace.detectors.base import Detector
from stillhouse.trace.detectors.case import Case
from stillhouse.trace.detectors.registry import DETECTORS, unmet_requirements
from stillhouse.trace.judge import TeacherJudgement, judge_all
from stillhouse.trace.plan import TeacherPlan, TracePlan
from stillhouse.trace.report.page import render_page
from stillhouse.trace.resample import planned_mark, read_marks
from stillhouse.watermark import key_fingerprint, read_key as read_mark_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from stillhouse.trace.suspects.base import Suspect

JOURNAL = "answers.journal"
"""Answers of an API so far; in the end the transcripts hold them."""
LIBRARIES = ("numpy", "scipy", "pyarrow", "tokenizers")
"""Libraries that the transcripts and the arithmetic depend on, besides torch and transformers."""


def run_trace(
    plan: TracePlan, directory: Path, *, key: Ed25519PrivateKey | None = None, command: str = ""
) -> Evidence:
    """Runs or resumes a trace by its resolved plan, and writes the bundle.

    Args:
        key: signs the evidence.
        command: the command line, for the record.

    Raises:
        IntegrityError: the directory holds commitments to something else.
        StillhouseError: a model, a log or a secret is missing or unusable.
    """
    from stillhouse.trace.suspects.open import open_suspect

    lock = take_lock(directory)
    try:
        # read first: a commitment to a log that cannot be read would prevent the corrected command
        logs = {teacher.name: read_teacher_log(teacher) for teacher in plan.teachers}
        commitments = commit(plan, directory)
        suspect = open_suspect(
            str(plan.suspect),
            journal=directory / JOURNAL,
            max_tokens=plan.budget,
            api_key_env=plan.api_key_env,
            seed=plan.seed,
        )
        try:
            access = {teacher.name: access_to(plan, teacher, suspect) for teacher in plan.teachers}
            for teacher in plan.teachers:
                _observe_all(plan, teacher, logs[teacher.name], suspect, access[teacher.name], directory)
        finally:
            suspect.close()
        return _write_bundle(plan, directory, commitments, logs, access, key, command)
    finally:
        os.close(lock)


def access_to(plan: TracePlan, teacher: TeacherPlan, suspect: Suspect) -> Access:
    """The access that the plan and the suspect provide for tests about one teacher."""
    reference = None if teacher.model is None else parse_reference(teacher.model)
    has_weights = reference is not None and reference.kind != "api"
    return Access(
        suspect=frozenset(what for what in ("generate", "logprobs", "weights") if getattr(suspect.can, what)),
        teacher=teacher_access(
            teacher,
            has_weights=has_weights,
            has_sampler=has_weights and reference is not None and not reference.is_gguf,
            marked_resamples=_resamples_are_marked(plan, teacher),
        ),
        references=len(plan.references),
    )


def _resamples_are_marked(plan: TracePlan, teacher: TeacherPlan) -> bool:
    """Whether the file of resamples carries the watermark of the plan's key."""
    if teacher.resamples is None or teacher.watermark_key is None:
        return False
    key, marks = read_mark_key(teacher.watermark_key), read_marks(teacher.resamples)
    if plan.tests.radioactivity is None:  # the plan then knows the key, but not the scheme and its parameters
        return any(mark["key"] == key_fingerprint(key) for mark in marks)
    return planned_mark(plan.tests.radioactivity, key).public_parameters in marks


def read_teacher_log(teacher: TeacherPlan) -> Log:
    """The outputs delivered to the tested and the placebo accounts."""
    return read_log(teacher.log, (*teacher.accounts, *teacher.placebo_accounts))


def _observe_all(
    plan: TracePlan, teacher: TeacherPlan, log: Log, suspect: Suspect, access: Access, directory: Path
) -> None:
    for test, unmet in unmet_requirements(plan, access).items():
        if unmet is not None:
            console.info(f"{test} ({teacher.name}): not possible; it {unmet}")
            continue
        path = directory / transcript_path(teacher.name, test)
        if path.exists():
            console.info(f"{test} ({teacher.name}): already observed")
            continue
        write_observation(DETECTORS[test], Case(plan, teacher, log, suspect, directory), path)


def write_observation(detector: Detector, case: Case, path: Path) -> None:
    """Runs a detector's ``observe`` and writes the transcript to ``path``."""
    begun = now()
    table = detector.observe(case)
    write_transcript(path, table, begun, now())
    for journal in path.parent.glob(f"{detector.name}-*.journal"):
        journal.unlink()


def _write_bundle(
    plan: TracePlan,
    directory: Path,
    commitments: Commitments,
    logs: Mapping[str, Log],
    access: Mapping[str, Access],
    key: Ed25519PrivateKey | None,
    command: str,
) -> Evidence:
    """Judges all transcripts and writes evidence, report and signature."""
    secrets = _open_secrets(plan, directory)
    judgements = judge_all(directory, plan, access, secrets)
    evidence = Evidence(
        name=plan.name,
        question=plan.question,
        created=now(),
        suspect=_model_record(str(plan.suspect), commitments, access),
        references=[_model_record(reference, commitments) for reference in plan.references],
        teachers=[
            _teacher_record(
                teacher, logs[teacher.name], access[teacher.name], judgements[teacher.name], commitments
            )
            for teacher in plan.teachers
        ],
        hard=plan.hard,
        alpha=plan.alpha,
        share=plan.share,
        seed=plan.seed,
        commitments=commitments_record(directory, commitments, judgements),
        environment=environment(),
        command=command,
        files={},
    )
    # `verify` renders the page from the file, where keys are sorted, so the page is rendered in that order.
    evidence = Evidence.model_validate_json(evidence_text(evidence))
    atomic_write(directory / REPORT, render_page(evidence, (directory / PLAN).read_text("utf-8")))
    return write_evidence(directory, evidence, key)


def _open_secrets(plan: TracePlan, directory: Path) -> dict[str, bytes]:
    """Copies the secret files into the bundle, so that commitments can be checked; returns their contents."""
    contents = {}
    for name, path in secret_files(plan).items():
        opened = directory / OPENED / name
        with storage_errors(opened), atomic_path(opened) as temporary:
            shutil.copyfile(path, temporary)
        contents[name] = opened.read_bytes()
    return contents


def commitments_record(
    directory: Path, commitments: Commitments, judgements: Mapping[str, TeacherJudgement]
) -> CommitmentsRecord:
    """Compares the times of the commitments and of the first query."""
    tests = [test for judgement in judgements.values() for test in judgement.tests]
    paths = [test.transcript for test in tests if test.transcript]
    times = [time for path in paths if (time := started(read_transcript(directory / path)))]
    first = min(times, default=None)
    in_time = first is None or commitments.created <= first
    if first is None:
        words = "Nothing was asked."
    elif in_time:
        words = f"Committed at {commitments.created}, before the first query at {first}."
    else:
        words = (
            f"The commitments were made at {commitments.created}, AFTER the first query at {first}: whatever "
            "they fix could have been chosen with an eye on the answers."
        )
    return CommitmentsRecord(
        sha256=sha256_file(directory / COMMITMENTS),
        created=commitments.created,
        first_query=first,
        in_time=in_time,
        words=words,
    )


def environment() -> dict[str, str]:
    """Versions of the libraries, and the machine."""
    libraries = {name: metadata.version(name) for name in LIBRARIES}
    return versions() | libraries | {"machine": platform.machine(), "processors": str(os.cpu_count())}


def _model_record(
    reference: str, commitments: Commitments, access: Mapping[str, Access] | None = None
) -> ModelRecord:
    can = sorted(next(iter(access.values())).suspect) if access else []
    return ModelRecord(reference=reference, fingerprint=commitments.models.get(reference), can=can)


def _teacher_record(
    teacher: TeacherPlan, log: Log, access: Access, judgement: TeacherJudgement, commitments: Commitments
) -> TeacherRecord:
    return TeacherRecord(
        name=teacher.name,
        model=None if teacher.model is None else _model_record(teacher.model, commitments),
        access=sorted(access.teacher),
        log=DeliveredLogRecord(path=teacher.log, sha256=log.hash, rows=len(log.rows), left_out=log.left_out),
        tests=judgement.tests,
        rungs=judgement.claims,
        verdict=judgement.verdict,
    )
