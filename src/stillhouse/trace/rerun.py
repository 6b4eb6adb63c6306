"""Asks the models again, and compares what they say with the transcripts of a bundle.

Where every model runs on this machine, its weights have the recorded fingerprint and the versions of the
libraries are the recorded ones, the answers must be the same, bit for bit, and anything else is a difference.
Elsewhere (an API, another processor, another version of torch) numbers may differ in their last digits: the
largest difference is told, with what the findings would have been, and is no difference of the bundle.

The log has to be where the plan says.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from stillhouse.errors import CorpusError, IntegrityError
from stillhouse.models import fingerprint_of, parse_reference
from stillhouse.pages.numbers import format_scientific
from stillhouse.trace.bundle.commitments import log_hash, secret_files
from stillhouse.trace.bundle.files import OPENED, PLAN, RESAMPLES, read_transcript
from stillhouse.trace.bundle.schema import Evidence, PlannedTestRecord
from stillhouse.trace.detectors.case import Case
from stillhouse.trace.detectors.registry import DETECTORS
from stillhouse.trace.judge import judge_transcript
from stillhouse.trace.plan import TeacherPlan, TracePlan, load_plan
from stillhouse.trace.run import environment, read_teacher_log, write_observation
from stillhouse.trace.suspects.base import Suspect
from stillhouse.trace.suspects.open import open_suspect
from stillhouse.trace.verify import BundleVerification

SAME = ("torch", "transformers", "tokenizers", "numpy", "platform", "machine")
"""What has to be as recorded for answers to be the same, bit for bit."""


def rerun_bundle(directory: Path, result: BundleVerification) -> None:
    """Adds what differs to ``result``, as differences or as notes.

    Raises:
        IntegrityError: a model or a log is not the recorded one.
        StillhouseError: it is not there.
    """
    plan, evidence = load_plan(directory / PLAN), result.evidence
    _require_recorded(plan, evidence)
    local = all(parse_reference(reference).kind != "api" for reference in _references(plan))
    here = environment()
    others = [name for name in SAME if here.get(name) != evidence.environment.get(name)]
    exact = local and not others
    if not exact:
        why = "an API was asked" if not local else f"other {', '.join(others)} than recorded"
        result.notes.append(f"asked again, but not to be equal bit for bit: {why}")
    suspect = open_suspect(str(plan.suspect), api_key_env=plan.api_key_env, seed=plan.seed)
    try:
        for teacher, recorded in zip(plan.teachers, evidence.teachers, strict=True):
            for part in recorded.tests:
                if part.transcript is not None:
                    _compare(directory, plan, teacher, part, suspect, result, exact=exact)
    finally:
        suspect.close()


def _references(plan: TracePlan) -> list[str]:
    found = [plan.suspect, *plan.references, *(teacher.model for teacher in plan.teachers)]
    return [reference for reference in found if reference is not None]


def _require_recorded(plan: TracePlan, evidence: Evidence) -> None:
    models = [evidence.suspect, *evidence.references, *(t.model for t in evidence.teachers if t.model)]
    for model in models:
        if fingerprint_of(model.reference) != model.fingerprint:
            raise IntegrityError(
                f"{model.reference} is not the model that was asked: its fingerprint differs"
            )
    for teacher, recorded in zip(plan.teachers, evidence.teachers, strict=True):
        if log_hash(teacher.log) != recorded.log.sha256:
            raise CorpusError(f"{teacher.log} is not the log that was tested: its hash differs")


def _compare(
    directory: Path,
    plan: TracePlan,
    teacher: TeacherPlan,
    part: PlannedTestRecord,
    suspect: Suspect,
    result: BundleVerification,
    *,
    exact: bool,
) -> None:
    assert part.transcript is not None
    with tempfile.TemporaryDirectory() as scratch:
        again = Path(scratch) / "again.parquet"
        case = Case(plan, teacher, read_teacher_log(teacher), suspect, Path(scratch))
        write_observation(DETECTORS[part.test], case, again)
        if (drawn := Path(scratch) / RESAMPLES / f"{teacher.name}.parquet").exists():
            _compare_tables(
                f"{RESAMPLES}/{teacher.name}.parquet",
                read_transcript(directory / RESAMPLES / drawn.name),
                read_transcript(drawn),
                result,
                exact=exact,
            )
        table = read_transcript(again)
    before = read_transcript(directory / part.transcript)
    if _compare_tables(part.transcript, before, table, result, exact=exact):
        return
    secrets = {name: (directory / OPENED / name).read_bytes() for name in secret_files(plan)}
    finding, _ = judge_transcript(DETECTORS[part.test], table, plan, teacher, secrets)
    then = part.finding.e_value if part.finding else None
    result.notes.append(
        f"{teacher.name}, {part.test}: E = {format_scientific(finding.e_value)} from the new answers, "
        f"{format_scientific(then)} from the recorded ones"
    )


def _compare_tables(
    name: str, before: pa.Table, after: pa.Table, result: BundleVerification, *, exact: bool
) -> bool:
    """Whether two tables are equal; says where they are not."""
    found = table_difference(before, after)
    if found is None:
        return True
    (result.differences if exact else result.notes).append(f"{name}: asked again, {found}")
    return False


def table_difference(before: pa.Table, after: pa.Table) -> str | None:
    """How two tables differ, in words: rows, columns, texts, or the largest difference of numbers."""
    if before.column_names != after.column_names:
        return "the columns differ"
    if len(before) != len(after):
        return f"there are {len(after):,} rows instead of {len(before):,}"
    told = []
    for column in before.column_names:
        one, other = before[column].combine_chunks(), after[column].combine_chunks()
        if one.equals(other):
            continue
        rows = [a != b for a, b in zip(one.to_pylist(), other.to_pylist(), strict=True)]
        changed = f"{column} differs in {sum(rows):,} of {len(rows):,} rows"
        if pa.types.is_floating(one.type):
            gaps = np.abs(_floats(one) - _floats(other))
            changed += f", at most by {np.nanmax(gaps, initial=0.0):.2g}"
        told.append(changed)
    return "; ".join(told) or None


def _floats(column: pa.Array) -> np.ndarray:
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
