"""Is a bundle what it says? Reruns the arithmetic from the transcripts, without any model.

Checked are the signature, the hash of every file, the commitments, and every number: each judge is called
again on its transcript with the parameters that follow from the plan, the placebos and the combination too,
and what comes out is compared with what is written, field by field. That transcripts hold what the models
said is checked by asking them again (`--rerun`, :mod:`.rerun`).
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
from stillhouse.trace.bundle.schema import Commitments, Evidence
from stillhouse.trace.judge import judge_all
from stillhouse.trace.plan import TracePlan, load_plan
from stillhouse.trace.report.page import render_page
from stillhouse.trace.run import commitments_part

TOLERANCE = 1e-9
"""Relative difference of two computations of one number, on another machine and with other versions of numpy
and scipy, that counts as none."""


@dataclass
class BundleVerification:
    """The outcome of a check."""

    evidence: Evidence
    checked: int
    """Files whose content was compared."""
    numbers: int = 0
    """Numbers that were computed again."""
    differences: list[str] = field(default_factory=list)
    """One line each."""
    notes: list[str] = field(default_factory=list)
    """What a reader should know, and no difference."""

    def facts(self) -> dict[str, Any]:
        """What `--json` prints."""
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
    """Checks a bundle.

    Args:
        public_key: hexadecimal; the evidence has to be signed by it.

    Raises:
        IntegrityError: there is no evidence, or it cannot be read as such.
    """
    evidence = read_evidence(directory)
    result = BundleVerification(evidence, len(evidence.files) + 1)
    if found := signature_difference(directory, evidence, public_key):
        result.differences.append(found)
    elif evidence.signed_by is None:
        result.notes.append("not signed: whoever has the files could have changed all of them together")
    result.differences += _file_differences(directory, evidence)
    try:
        plan = load_plan(directory / PLAN)
        commitments = read_commitments(directory / COMMITMENTS)
    except StillhouseError as error:
        result.differences.append(str(error))
        return result
    result.differences += _commitment_differences(directory, evidence, plan, commitments)
    if commitments.code != code_hash():
        result.notes.append(
            f"the code here is not the code that was committed (version {commitments.version}); its numbers "
            "are compared all the same"
        )
    if not evidence.commitments.in_time:
        result.notes.append(evidence.commitments.words)
    _compare_numbers(directory, evidence, plan, commitments, result)
    if not result.differences and not _says_the_same(directory, evidence):
        if commitments.code == code_hash():
            result.differences.append(f"{REPORT} does not say what the evidence says")
        else:  # the wording of the page may have changed between versions
            result.notes.append(f"{REPORT} was made by other code and is not compared; trust {EVIDENCE}")
    return result


def _says_the_same(directory: Path, evidence: Evidence) -> bool:
    """Whether the page is the one that is made from the evidence, which has been found sound."""
    plan, page = ((directory / name).read_text("utf-8") for name in (PLAN, REPORT))
    return _without_pictures(render_page(evidence, plan)) == _without_pictures(page)


def _without_pictures(page: str) -> str:
    """Another version of the drawing library draws other bytes of the same numbers."""
    return re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)


def _file_differences(directory: Path, evidence: Evidence) -> Iterator[str]:
    there = set(recorded_files(directory))
    for path, digest in evidence.files.items():
        if path not in there:
            yield f"{path} is missing"
        elif sha256_file(directory / path) != digest:
            yield f"{path} has other content than recorded"
    for path in sorted(there - set(evidence.files)):
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
        result.differences.append(f"the findings cannot be computed again: {error}")
        return
    except Exception as error:  # a judge on a table that was tampered with may fail in any way
        result.differences.append(
            f"the findings cannot be computed again: {type(error).__name__}: {error}"[:300]
        )
        return
    written: dict[str, Any] = {
        "hard": evidence.hard,
        "alpha": evidence.alpha,
        "share": evidence.share,
        "seed": evidence.seed,
        "name": evidence.name,
        "question": evidence.question,
        "commitments": evidence.commitments.model_dump(),
    }
    again: dict[str, Any] = {key: getattr(plan, key) for key in written if key != "commitments"}
    again["commitments"] = commitments_part(directory, commitments, judged).model_dump()
    for teacher in evidence.teachers:
        found = judged[teacher.name]
        written[teacher.name] = {
            "tests": {part.test: part.model_dump() for part in teacher.tests},
            "rungs": [part.model_dump() for part in teacher.rungs],
            "verdict": teacher.verdict.model_dump(),
        }
        again[teacher.name] = {
            "tests": {part.test: part.model_dump() for part in found.tests},
            "rungs": [part.model_dump() for part in found.claims],
            "verdict": found.verdict.model_dump(),
        }
    result.differences += _differences(written, again, "")
    result.numbers = _count_numbers(again)


def _differences(written: Any, again: Any, place: str) -> Iterator[str]:
    """Where two values differ, one line each; see :data:`TOLERANCE`."""
    if isinstance(written, dict) and isinstance(again, dict):
        for key in {**written, **again}:
            inner = f"{place}.{key}".lstrip(".")
            if key in written and key in again:
                yield from _differences(written[key], again[key], inner)
            else:
                yield f"{inner} is {'written, and is not computed' if key in written else 'missing'}"
    elif isinstance(written, list) and isinstance(again, list) and len(written) == len(again):
        for number, (one, other) in enumerate(zip(written, again, strict=True)):
            yield from _differences(one, other, f"{place}[{number}]")
    elif not _same(written, again):
        yield f"{place} is written as {_short(written)}, and the transcripts give {_short(again)}"


def _same(written: Any, again: Any) -> bool:
    numbers = [isinstance(v, int | float) and not isinstance(v, bool) for v in (written, again)]
    if all(numbers):
        return math.isclose(written, again, rel_tol=TOLERANCE, abs_tol=1e-300)
    return type(written) is type(again) and written == again


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def _count_numbers(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_count_numbers, value.values()))
    if isinstance(value, list):
        return sum(map(_count_numbers, value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def require_verified(directory: Path, result: BundleVerification, most: int = 20) -> None:
    """Refuses a bundle with differences.

    Raises:
        IntegrityError: names the first of them.
    """
    if not result.differences:
        return
    shown = [f"{directory}: {difference}" for difference in result.differences[:most]]
    if more := len(result.differences) - most:
        shown += [f"and {more} more; --json lists all"] if more > 0 else []
    error = IntegrityError(
        "\n".join(shown), hint="This is not the evidence that was written; do not rely on it."
    )
    error.report = result.facts()
    raise error
