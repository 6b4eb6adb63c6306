"""Findings and verdicts computed from the files of a bundle: what a trace reports and `verify` reruns.

Needs no model. Everything follows from the plan, the opened secrets, the transcripts and the recorded access.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from stillhouse.trace.access import Access
from stillhouse.trace.bundle.files import read_transcript, transcript_path
from stillhouse.trace.bundle.schema import (
    LevelRecord,
    PlaceboRecord,
    PlannedTestRecord,
    VerdictRecord,
    finding_from_record,
    finding_record,
    finite_e,
)
from stillhouse.trace.detectors.base import Detector
from stillhouse.trace.detectors.registry import DETECTORS, unmet_requirements
from stillhouse.trace.finding import Finding
from stillhouse.trace.plan import TeacherPlan, TracePlan
from stillhouse.trace.verdict import WeightedFinding, decide_claims, verdict, weights_claims


@dataclass(frozen=True)
class TeacherJudgement:
    """Findings, claims and verdict about one teacher."""

    tests: list[PlannedTestRecord]
    claims: list[LevelRecord]
    verdict: VerdictRecord


def judge_all(
    directory: Path, plan: TracePlan, access: Mapping[str, Access], secrets: Mapping[str, bytes]
) -> dict[str, TeacherJudgement]:
    """Every finding and verdict of a bundle, by teacher.

    Args:
        access: by teacher.
        secrets: contents of the files in :func:`stillhouse.trace.bundle.commitments.secret_files`, by name.

    Raises:
        IntegrityError: a transcript is missing or damaged.
    """
    tests = {
        teacher.name: judge_tests(directory, plan, teacher, access[teacher.name], secrets)
        for teacher in plan.teachers
    }
    weighted = {
        name: [_weighted(record) for record in records if record.hindrance is None]
        for name, records in tests.items()
    }
    # All teachers together: the threshold of each claim depends on how many are still undecided.
    claims, of_weights = decide_claims(weighted, plan.hard), weights_claims(weighted, plan.hard)
    judgements = {}
    for name, records in tests.items():
        conclusion = verdict(
            claims[name],
            weighted[name],
            share=plan.share,
            alpha=plan.alpha,
            of_weights=of_weights.get(name),
        )
        judgements[name] = TeacherJudgement(
            tests=records,
            claims=[LevelRecord.model_validate(dataclasses.asdict(claim)) for claim in claims[name]],
            verdict=VerdictRecord.model_validate(dataclasses.asdict(conclusion)),
        )
    return judgements


def judge_tests(
    directory: Path, plan: TracePlan, teacher: TeacherPlan, access: Access, secrets: Mapping[str, bytes]
) -> list[PlannedTestRecord]:
    """The planned tests about one teacher, in the plan's order, each judged from its transcript."""
    records = []
    for test, unmet in unmet_requirements(plan, access).items():
        detector, weight = DETECTORS[test], plan.tests.weight(test)
        if unmet is not None:
            level = detector.level_in(plan)
            records.append(PlannedTestRecord(test=test, level=level, weight=weight, hindrance=unmet))
            continue
        path = transcript_path(teacher.name, test)
        transcript = read_transcript(directory / path)
        finding, placebos = judge_transcript(detector, transcript, plan, teacher, secrets)
        records.append(
            PlannedTestRecord(
                test=test,
                level=finding.level,
                weight=weight,
                transcript=path,
                finding=finding_record(finding),
                placebos=placebos,
            )
        )
    return records


def judge_transcript(
    detector: Detector,
    transcript: pa.Table,
    plan: TracePlan,
    teacher: TeacherPlan,
    secrets: Mapping[str, bytes],
) -> tuple[Finding, list[PlaceboRecord]]:
    """A test's finding on the tested accounts, and its placebos: the placebo accounts', then its own."""
    parameters = detector.judge_parameters(plan, teacher, secrets)
    tested = rows_of_accounts(transcript, teacher.accounts)
    placebos = []
    for account in teacher.placebo_accounts if "account" in transcript.column_names else ():
        finding = detector.judge(rows_of_accounts(transcript, [account]), parameters)
        if finding.ran:
            placebos.append(_placebo_record(f"account {account}", finding))
    for placebo in detector.placebos(plan, tested, parameters):
        finding = detector.judge(placebo.transcript, placebo.parameters)
        placebos.append(_placebo_record(placebo.name, finding))
    return detector.judge(tested, parameters), placebos


def rows_of_accounts(transcript: pa.Table, accounts: Sequence[str]) -> pa.Table:
    """The rows of some accounts; all rows for an empty list or a transcript without accounts."""
    if not accounts or "account" not in transcript.column_names:
        return transcript
    wanted = [account in accounts for account in transcript["account"].to_pylist()]
    return transcript.filter(pa.array(wanted, pa.bool_()))


def _placebo_record(name: str, finding: Finding) -> PlaceboRecord:
    e_value = None if finding.e_value is None else finite_e(finding.e_value)
    return PlaceboRecord(name=name, p_value=finding.p_value, e_value=e_value)


def _weighted(record: PlannedTestRecord) -> WeightedFinding:
    # From the record, not from the finding itself, so that the written numbers are what is combined.
    finding = None if record.finding is None else finding_from_record(record.finding)
    return WeightedFinding(record.test, record.level, record.weight, finding)
