"""Queries the models again and compares their answers with the transcripts of a bundle.

If every model runs on this machine with the recorded fingerprint and the recorded library versions, the
answers must be equal bit for bit, and anything else is a difference. Otherwise (an API, another processor,
another version of torch) numbers may differ in their last digits: the largest deviation and the resulting
findings are reported as notes, not as differences of the bundle.

The log must be at the path in the plan.
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
from stillhouse.trace.plan import TeacherPlan, TracePlan, load_bundled_plan
from stillhouse.trace.run import environment, read_teacher_log, write_observation
from stillhouse.trace.suspects.base import Suspect
from stillhouse.trace.suspects.open import open_suspect
from stillhouse.trace.verify import BundleVerification

EXACT_VERSIONS = ("torch", "transformers", "tokenizers", "numpy", "platform", "machine")
"""Entries of the environment that must be as recorded for answers to be equal bit for bit."""


def rerun_bundle(directory: Path, result: BundleVerification) -> None:
    """Adds deviations to ``result``, as differences or as notes.

    Raises:
        IntegrityError: a model or a log is not the recorded one.
        StillhouseError: a model or a log is missing.
    """
    plan, evidence = load_bundled_plan(directory / PLAN), result.evidence
    _require_recorded(plan, evidence)
    local = all(parse_reference(reference).kind != "api" for reference in _references(plan))
    here = environment()
    others = [name for name in EXACT_VERSIONS if here.get(name) != evidence.environment.get(name)]
    exact = local and not others
    if not exact:
        why = "an API answers" if not local else f"other {', '.join(others)} than recorded"
        result.notes.append(f"queried again, without expecting bitwise equality: {why}")
    suspect = open_suspect(str(plan.suspect), api_key_env=plan.api_key_env, seed=plan.seed)
    try:
        for teacher, recorded in zip(plan.teachers, evidence.teachers, strict=True):
            for record in recorded.tests:
                if record.transcript is not None:
                    _compare(directory, plan, teacher, record, suspect, result, exact=exact)
    finally:
        suspect.close()


def _references(plan: TracePlan) -> list[str]:
    references = [plan.suspect, *plan.references, *(teacher.model for teacher in plan.teachers)]
    return [reference for reference in references if reference is not None]


def _require_recorded(plan: TracePlan, evidence: Evidence) -> None:
    models = [evidence.suspect, *evidence.references, *(t.model for t in evidence.teachers if t.model)]
    for model in models:
        if fingerprint_of(model.reference) != model.fingerprint:
            raise IntegrityError(
                f"{model.reference} is not the model that was queried: its fingerprint differs"
            )
    for teacher, recorded in zip(plan.teachers, evidence.teachers, strict=True):
        if log_hash(teacher.log) != recorded.log.sha256:
            raise CorpusError(f"{teacher.log} is not the log that was tested: its hash differs")


def _compare(
    directory: Path,
    plan: TracePlan,
    teacher: TeacherPlan,
    record: PlannedTestRecord,
    suspect: Suspect,
    result: BundleVerification,
    *,
    exact: bool,
) -> None:
    """Observes one test again and compares its transcript, and the resamples if it draws them."""
    assert record.transcript is not None
    detector = DETECTORS[record.test]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "transcript.parquet"
        write_observation(
            detector, Case(plan, teacher, read_teacher_log(teacher), suspect, Path(scratch)), path
        )
        if (resamples := Path(scratch) / RESAMPLES / f"{teacher.name}.parquet").exists():
            _compare_tables(
                f"{RESAMPLES}/{teacher.name}.parquet",
                read_transcript(directory / RESAMPLES / resamples.name),
                read_transcript(resamples),
                result,
                exact=exact,
            )
        transcript = read_transcript(path)
    recorded = read_transcript(directory / record.transcript)
    if _compare_tables(record.transcript, recorded, transcript, result, exact=exact):
        return
    secrets = {name: (directory / OPENED / name).read_bytes() for name in secret_files(plan)}
    finding, _ = judge_transcript(detector, transcript, plan, teacher, secrets)
    recorded_e = record.finding.e_value if record.finding else None
    result.notes.append(
        f"{teacher.name}, {record.test}: E = {format_scientific(finding.e_value)} from the new answers, "
        f"{format_scientific(recorded_e)} from the recorded ones"
    )


def _compare_tables(
    name: str, recorded: pa.Table, new: pa.Table, result: BundleVerification, *, exact: bool
) -> bool:
    """Whether two tables are equal; adds to ``result`` how they are not."""
    difference = table_difference(recorded, new)
    if difference is None:
        return True
    (result.differences if exact else result.notes).append(f"{name}: queried again, {difference}")
    return False


def table_difference(recorded: pa.Table, new: pa.Table) -> str | None:
    """How two tables differ: in columns, rows, texts, or by the largest difference of numbers."""
    if recorded.column_names != new.column_names:
        return "the columns differ"
    if len(recorded) != len(new):
        return f"there are {len(new):,} rows instead of {len(recorded):,}"
    differences = []
    for column in recorded.column_names:
        one, other = recorded[column].combine_chunks(), new[column].combine_chunks()
        if one.equals(other):
            continue
        changed = [a != b for a, b in zip(one.to_pylist(), other.to_pylist(), strict=True)]
        difference = f"{column} differs in {sum(changed):,} of {len(changed):,} rows"
        if pa.types.is_floating(one.type):
            gaps = np.abs(_floats(one) - _floats(other))
            difference += f", at most by {np.nanmax(gaps, initial=0.0):.2g}"
        differences.append(difference)
    return "; ".join(differences) or None


def _floats(column: pa.Array) -> np.ndarray:
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
