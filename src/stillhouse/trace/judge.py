"""From the files of a bundle to its verdicts, without a model: what a trace reports and `verify` reruns.

Everything follows from the plan, the opened secrets, the transcripts and the access that was there.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stillhouse.trace.access import Access, unmet_requirements
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
from stillhouse.trace.finding import Finding, Judge, Level
from stillhouse.trace.plan import TeacherPlan, TracePlan
from stillhouse.trace.verdict import Weighed, climb, same_weights, verdict

MODULES = {
    "exchangeable": "detectors.exchangeable.judge",
    "radioactivity": "detectors.radioactivity",
    "canaries": "detectors.canaries",
    "rephrasings": "detectors.rephrasings",
    "style": "detectors.style",
    "identity": "detectors.identity",
    "weights": "detectors.weights_lineage",
    "training_order": "detectors.training_order",
}
"""Where each test is; a module has `observe` and `judge`."""
LEVELS: dict[str, Level] = {
    "exchangeable": "L2",
    "canaries": "L2",
    "rephrasings": "L2",
    "style": "L0",
    "identity": "exhibit",
    "weights": "weights",
    "training_order": "weights",
}


@dataclass(frozen=True)
class TeacherJudgement:
    """All that can be said about one teacher."""

    tests: list[PlannedTestRecord]
    rungs: list[LevelRecord]
    verdict: VerdictRecord


def judge_all(
    directory: Path, plan: TracePlan, access: Mapping[str, Access], secrets: Mapping[str, bytes]
) -> dict[str, TeacherJudgement]:
    """Every finding and verdict of a bundle, by teacher.

    Args:
        access: by teacher.
        secrets: contents of the files in :func:`.commit.secret_files`, by name.

    Raises:
        IntegrityError: a transcript that should be there is not, or is damaged.
    """
    tests = {
        teacher.name: judge_tests(directory, plan, teacher, access[teacher.name], secrets)
        for teacher in plan.teachers
    }
    weighed = {
        name: [_weighed(part) for part in parts if part.hindrance is None] for name, parts in tests.items()
    }
    rungs, of_weights = climb(weighed, plan.hard), same_weights(weighed, plan.hard)
    judged = {}
    for name, parts in tests.items():
        found = verdict(
            rungs[name],
            weighed[name],
            share=plan.share,
            alpha=plan.alpha,
            of_weights=of_weights.get(name),
        )
        judged[name] = TeacherJudgement(
            tests=parts,
            rungs=[LevelRecord.model_validate(dataclasses.asdict(rung)) for rung in rungs[name]],
            verdict=VerdictRecord.model_validate(dataclasses.asdict(found)),
        )
    return judged


def judge_tests(
    directory: Path, plan: TracePlan, teacher: TeacherPlan, access: Access, secrets: Mapping[str, bytes]
) -> list[PlannedTestRecord]:
    """The planned tests about one teacher, in the plan's order, each judged from its transcript."""
    parts = []
    for test, hindrance in unmet_requirements(plan, access).items():
        level, weight = level_of(plan, test), plan.tests.weight(test)
        if hindrance is not None:
            parts.append(PlannedTestRecord(test=test, level=level, weight=weight, hindrance=hindrance))
            continue
        path = transcript_path(teacher.name, test)
        finding, placebos = judge_transcript(
            test, read_transcript(directory / path), parameters(plan, teacher, test, secrets), plan, teacher
        )
        parts.append(
            PlannedTestRecord(
                test=test,
                level=finding.level,
                weight=weight,
                transcript=path,
                finding=finding_record(finding),
                placebos=placebos,
            )
        )
    return parts


def judge_transcript(
    test: str, transcript: pa.Table, arguments: Mapping[str, Any], plan: TracePlan, teacher: TeacherPlan
) -> tuple[Finding, list[PlaceboRecord]]:
    """A test's finding on the accounts that are tested, and the same where there is nothing to find."""
    judge = judge_of(test)
    tested = of_accounts(transcript, teacher.accounts)
    placebos = []
    for account in teacher.placebo_accounts if "account" in transcript.column_names else ():
        blind = judge(of_accounts(transcript, [account]), arguments)
        placebos += [_placebo(f"account {account}", blind)] if blind.ran else []
    if test == "radioactivity" and plan.placebos:
        from stillhouse.trace.detectors.radioactivity import placebo_keys

        for number, key in enumerate(placebo_keys(plan.seed, plan.placebos)):
            blind = judge(tested, {**arguments, "key": key, "placebo_keys": [key]})
            placebos.append(_placebo(f"key {number + 1}", blind))
    if test == "exchangeable":
        rng = np.random.default_rng(plan.seed)
        for number in range(plan.placebos):
            other = relabelled(tested, rng)
            if other is not None:
                placebos.append(_placebo(f"resample {number + 1}", judge(other, arguments)))
    return judge(tested, arguments), placebos


def judge_of(test: str) -> Judge:
    """The judge of a test."""
    return importlib.import_module(f".{MODULES[test]}", __package__).judge


def level_of(plan: TracePlan, test: str) -> Level:
    """The level that a planned test can reach."""
    if test == "radioactivity":
        assert plan.tests.radioactivity is not None
        return plan.tests.radioactivity.level
    return LEVELS[test]


def parameters(
    plan: TracePlan, teacher: TeacherPlan, test: str, secrets: Mapping[str, bytes]
) -> dict[str, Any]:
    """What the judge of ``test`` is called with; as JSON would give it back."""
    planned: dict[str, Any] = {"seed": plan.seed, "alpha": plan.alpha}
    if test == "exchangeable":
        section = plan.tests.exchangeable
        assert section is not None
        ends = section.surrogate_auc
        planned |= {
            "score": section.score,
            "surrogate_auc": [min(ends), max(ends)] if ends else None,
            "stop_at": plan.stop_at,
            "share": plan.share,
            "hard": plan.hard,
        }
    if test == "radioactivity":
        section = plan.tests.radioactivity
        assert section is not None
        planned |= {
            "key": secrets[f"{teacher.name}.watermark_key"].decode("ascii", "replace").strip(),
            "scheme": section.scheme,
            "window": section.window,
            "level": section.level,
        }
        planned |= {"gamma": section.gamma} if section.scheme == "kgw" else {}
        planned |= {"depth": section.depth} if section.scheme == "tournament" else {}
    return json.loads(json.dumps(planned))


def of_accounts(transcript: pa.Table, accounts: Sequence[str]) -> pa.Table:
    """The rows of some accounts; none means all, and so does a transcript that knows no accounts."""
    if not accounts or "account" not in transcript.column_names:
        return transcript
    wanted = [account in accounts for account in transcript["account"].to_pylist()]
    return transcript.filter(pa.array(wanted, pa.bool_()))


def relabelled(transcript: pa.Table, rng: np.random.Generator) -> pa.Table | None:
    """The transcript with a resample of each output in its place, and the output left out.

    Under any hypothesis the resamples of one output are exchangeable among each other, so that this is a test
    with nothing to find. None where an output has fewer than two resamples left to compare.
    """
    draws_N = transcript["draw"].to_numpy()
    ids_N = np.unique(transcript["id"].to_numpy(zero_copy_only=False), return_inverse=True)[1]
    kept = draws_N > 0
    chosen_N = np.where(kept, rng.random(len(draws_N)), -1.0)
    order = np.lexsort((chosen_N, ids_N))
    last = np.r_[ids_N[order][1:] != ids_N[order][:-1], True] if len(order) else np.zeros(0, bool)
    standing_in = np.zeros(len(draws_N), bool)
    standing_in[order[last]] = True
    if not kept.any() or np.bincount(ids_N[kept]).max(initial=0) < 2:
        return None
    new_N = np.where(standing_in, 0, draws_N)
    place = transcript.column_names.index("draw")
    column = pa.array(new_N, transcript.schema.field("draw").type)
    return transcript.set_column(place, "draw", column).filter(pa.array(kept))


def _placebo(name: str, finding: Finding) -> PlaceboRecord:
    e_value = None if finding.e_value is None else finite_e(finding.e_value)
    return PlaceboRecord(name=name, p_value=finding.p_value, e_value=e_value)


def _weighed(part: PlannedTestRecord) -> Weighed:
    """From what is written down, so that the written numbers are what was combined."""
    finding = None if part.finding is None else finding_from_record(part.finding)
    return Weighed(part.test, part.level, part.weight, finding)
