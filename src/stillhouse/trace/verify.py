"""Verifies a bundle by recomputing everything from the transcripts, without any model.

Checks the signature, the hash of every file, the commitments, and every number. It calls each judge again on
its transcript with the parameters that follow from the plan, recomputes placebos and verdicts, and compares
the results with the evidence, field by field. Whether the transcripts hold what the models answered is
checked by querying them again (`--rerun`, :mod:`stillhouse.trace.rerun`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillhouse.errors import IntegrityError, StillhouseError
from stillhouse.hashing import sha256_file, sha256_text
from stillhouse.trace.access import Access
from stillhouse.trace.bundle.commitments import (
    COMMITMENTS,
    SALTS,
    code_hash,
    read_commitments,
    salted_hash,
    secret_files,
)
from stillhouse.trace.bundle.files import (
    EVIDENCE,
    OPENED,
    PLAN,
    REPORT,
    read_evidence,
    recorded_files,
    signature_difference,
)
from stillhouse.trace.bundle.schema import (
    Commitments,
    Evidence,
    LevelRecord,
    PlannedTestRecord,
    VerdictRecord,
)
from stillhouse.trace.judge import judge_all
from stillhouse.trace.plan import TracePlan, load_bundled_plan
from stillhouse.trace.report.page import render_page
from stillhouse.trace.run import commitments_record

PLAN_FIELDS = ("hard", "alpha", "share", "seed", "name", "question")
"""Fields of the evidence that repeat the plan."""
TOLERANCE = 1e-9
"""Accepted relative difference of a number: other machines and other versions of numpy and scipy round
differently."""


@dataclass
class BundleVerification:
    """The result of verifying a bundle."""

    evidence: Evidence
    checked: int
    """Number of files whose content was compared."""
    numbers: int = 0
    """Number of recomputed numbers."""
    differences: list[str] = field(default_factory=list)
    """Differences between evidence and recomputation, one line each."""
    notes: list[str] = field(default_factory=list)
    """Remarks for the reader that are not differences."""

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        verdicts = {teacher.name: teacher.verdict.headline for teacher in self.evidence.teachers}
        return {
            "checked": self.checked,
            "numbers": self.numbers,
            "differences": self.differences,
            "notes": self.notes,
            "signed_by": self.evidence.signed_by,
            "verdicts": verdicts,
        }


def verify_bundle(directory: Path, *, public_key: str | None = None) -> BundleVerification:
    """Verifies a bundle.

    Args:
        public_key: hexadecimal; the key that the evidence must be signed with.

    Raises:
        IntegrityError: the evidence is missing or invalid.
    """
    evidence = read_evidence(directory)
    result = BundleVerification(evidence, len(evidence.files) + 1)
    if difference := signature_difference(directory, evidence, public_key):
        result.differences.append(difference)
    elif evidence.signed_by is None:
        result.notes.append("not signed: anyone with the files could have changed all of them together")
    result.differences += _file_differences(directory, evidence)
    try:
        plan = load_bundled_plan(directory / PLAN)
        commitments = read_commitments(directory / COMMITMENTS)
    except StillhouseError as error:
        result.differences.append(str(error))
        return result
    result.differences += _commitment_differences(directory, evidence, plan, commitments)
    if commitments.code != code_hash():
        result.notes.append(
            f"this code is not the committed code (version {commitments.version}); the numbers are compared "
            "anyway"
        )
    if not evidence.commitments.in_time:
        result.notes.append(evidence.commitments.words)
    _compare_numbers(directory, evidence, plan, commitments, result)
    if not result.differences and not _report_matches(directory, evidence):
        if commitments.code == code_hash():
            result.differences.append(f"{REPORT} does not match the evidence")
        else:  # the wording of the page may have changed between versions
            result.notes.append(f"{REPORT} was made by other code and is not compared; trust {EVIDENCE}")
    return result


def _report_matches(directory: Path, evidence: Evidence) -> bool:
    """Whether the page is the one that the evidence renders to."""
    plan, page = ((directory / name).read_text("utf-8") for name in (PLAN, REPORT))
    return _without_plots(render_page(evidence, plan)) == _without_plots(page)


def _without_plots(page: str) -> str:
    # Another version of matplotlib renders the same numbers to other bytes.
    return re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)


def _file_differences(directory: Path, evidence: Evidence) -> Iterator[str]:
    present = set(recorded_files(directory))
    for path, digest in evidence.files.items():
        if path not in present:
            yield f"{path} is missing"
        elif sha256_file(directory / path) != digest:
            yield f"{path} has other content than recorded"
    for path in sorted(present - set(evidence.files)):
        yield f"{path} is not recorded in the evidence"


def _commitment_differences(
    directory: Path, evidence: Evidence, plan: TracePlan, commitments: Commitments
) -> Iterator[str]:
    if commitments.plan != sha256_text((directory / PLAN).read_text("utf-8")):
        yield f"{PLAN} is not the plan that was committed"
    for teacher in evidence.teachers:
        if commitments.logs.get(teacher.name) != teacher.log.sha256:
            yield f"teachers.{teacher.name}.log: its hash is not the one that was committed"
    models = [evidence.suspect, *evidence.references, *(t.model for t in evidence.teachers if t.model)]
    for model in models:
        if commitments.models.get(model.reference) != model.fingerprint:
            yield f"{model.reference}: its fingerprint is not the one that was committed"
    try:
        salts = json.loads((directory / SALTS).read_text("utf-8")) if secret_files(plan) else {}
        for name in secret_files(plan):
            content = (directory / OPENED / name).read_bytes()
            if salted_hash(salts[name], content) != commitments.secrets.get(name):
                yield f"{OPENED}/{name} is not the secret that was committed"
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"the committed secrets cannot be opened: {error}"


def _compare_numbers(
    directory: Path, evidence: Evidence, plan: TracePlan, commitments: Commitments, result: BundleVerification
) -> None:
    suspect = frozenset(evidence.suspect.can)
    if [t.name for t in evidence.teachers] != [t.name for t in plan.teachers]:
        result.differences.append("the teachers are not those of the plan")
        return
    access = {
        t.name: Access(suspect, frozenset(t.access), len(evidence.references)) for t in evidence.teachers
    }
    try:
        secrets = {name: (directory / OPENED / name).read_bytes() for name in secret_files(plan)}
        judged = judge_all(directory, plan, access, secrets)
    except (StillhouseError, OSError) as error:
        result.differences.append(f"the findings cannot be recomputed: {error}")
        return
    except Exception as error:  # a judge may fail in any way on a manipulated table
        result.differences.append(f"the findings cannot be recomputed: {type(error).__name__}: {error}"[:300])
        return
    written: dict[str, Any] = {key: getattr(evidence, key) for key in PLAN_FIELDS}
    recomputed: dict[str, Any] = {key: getattr(plan, key) for key in PLAN_FIELDS}
    written["commitments"] = evidence.commitments.model_dump()
    recomputed["commitments"] = commitments_record(directory, commitments, judged).model_dump()
    for teacher in evidence.teachers:
        judgement = judged[teacher.name]
        written[teacher.name] = _comparable(teacher.tests, teacher.rungs, teacher.verdict)
        recomputed[teacher.name] = _comparable(judgement.tests, judgement.claims, judgement.verdict)
    result.differences += _differences(written, recomputed, "")
    result.numbers = _count_numbers(recomputed)


def _comparable(
    tests: list[PlannedTestRecord], claims: list[LevelRecord], verdict: VerdictRecord
) -> dict[str, Any]:
    """Records as plain values; tests by name, so that a difference names its test."""
    return {
        "tests": {test.test: test.model_dump() for test in tests},
        "rungs": [claim.model_dump() for claim in claims],
        "verdict": verdict.model_dump(),
    }


def _differences(written: Any, recomputed: Any, path: str) -> Iterator[str]:
    """The differences of two values, one line each; see :data:`TOLERANCE`."""
    if isinstance(written, dict) and isinstance(recomputed, dict):
        for key in {**written, **recomputed}:
            inner = f"{path}.{key}".lstrip(".")
            if key in written and key in recomputed:
                yield from _differences(written[key], recomputed[key], inner)
            else:
                yield f"{inner} is {'written, and is not computed' if key in written else 'missing'}"
    elif isinstance(written, list) and isinstance(recomputed, list) and len(written) == len(recomputed):
        for number, (one, other) in enumerate(zip(written, recomputed, strict=True)):
            yield from _differences(one, other, f"{path}[{number}]")
    elif not _same(written, recomputed):
        yield f"{path} is written as {_short(written)}, and the transcripts give {_short(recomputed)}"


def _same(written: Any, recomputed: Any) -> bool:
    if _is_number(written) and _is_number(recomputed):
        return math.isclose(written, recomputed, rel_tol=TOLERANCE, abs_tol=1e-300)
    return type(written) is type(recomputed) and written == recomputed


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def _count_numbers(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_count_numbers, value.values()))
    if isinstance(value, list):
        return sum(map(_count_numbers, value))
    return _is_number(value)


def require_verified(directory: Path, result: BundleVerification, most: int = 20) -> None:
    """Raises if a bundle has differences.

    Raises:
        IntegrityError: lists the first ``most`` differences.
    """
    if not result.differences:
        return
    shown = [f"{directory}: {difference}" for difference in result.differences[:most]]
    if more := len(result.differences) - most:
        shown += [f"and {more} more; --json lists all"] if more > 0 else []
    error = IntegrityError(
        "\n".join(shown), hint="This is not the evidence that was written; do not rely on it."
    )
    error.report = result.to_json()
    raise error
