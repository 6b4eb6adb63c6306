"""The schema of ``evidence.json`` and ``commitments.json``, version 1.

Within a version fields are only added. Values that were not measured are null, and fields that do not apply
are empty. JSON has no infinity: an e-value above 1e300 is written as 1e300, which claims less, and other
non-finite numbers are null.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from stillhouse.trace.finding import Assumption, Finding, Level

SCHEMA_VERSION = 1
LARGEST = 1e300


class _EvidenceRecord(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AssumptionRecord(_EvidenceRecord):
    """See :class:`.finding.Assumption`."""

    text: str
    held: bool | None
    evidence: str = ""


class FindingRecord(_EvidenceRecord):
    """See :class:`.finding.Finding`."""

    test: str
    level: Level
    null: str
    n: int
    statistic: str = ""
    value: float | None = None
    p_value: float | None = None
    e_value: float | None = None
    effect: dict[str, float | None] = Field(default_factory=dict)
    assumptions: list[AssumptionRecord] = Field(default_factory=list)
    rivals: list[str] = Field(default_factory=list)
    parameters: dict[str, Any] = Field(default_factory=dict)
    series: dict[str, list[float | None]] = Field(default_factory=dict)
    reason: str | None = None


class PlaceboRecord(_EvidenceRecord):
    """The same test on data without an effect."""

    name: str
    """The resample, key or account that took the place of the real one."""
    p_value: float | None
    e_value: float | None


class PlannedTestRecord(_EvidenceRecord):
    """One planned test for one teacher."""

    test: str
    level: Level
    weight: float
    """Weight in the mean of its level, not normalised; 0 is never combined."""
    transcript: str | None = None
    """The file that the finding is computed from, relative to the bundle."""
    hindrance: str | None = None
    """Why it did not run: what the access lacks."""
    finding: FindingRecord | None = None
    placebos: list[PlaceboRecord] = Field(default_factory=list)


class LevelRecord(_EvidenceRecord):
    """See :class:`.verdict.ClaimEvidence`."""

    level: Literal["L1", "L2"]
    e_value: float
    tests: list[str]
    needed: float
    claimed: bool


class VerdictRecord(_EvidenceRecord):
    """See :class:`.verdict.Verdict`."""

    outcome: Literal["hard", "bound", "inconclusive"]
    level: Literal["L1", "L2"] | None
    headline: str
    sentence: str


class DeliveredLogRecord(_EvidenceRecord):
    """A delivered log as it was read."""

    path: str
    sha256: str
    rows: int
    """Outputs that can be tested."""
    left_out: dict[str, int]
    """Outputs that cannot be tested, by reason."""
    warnings: list[str] = Field(default_factory=list)


class ModelRecord(_EvidenceRecord):
    """A model that was queried."""

    reference: str
    fingerprint: str | None
    can: list[str] = Field(default_factory=list)


class TeacherRecord(_EvidenceRecord):
    """Everything about one teacher."""

    name: str
    model: ModelRecord | None
    access: list[str]
    """What the plan provided of the teacher."""
    log: DeliveredLogRecord
    tests: list[PlannedTestRecord]
    rungs: list[LevelRecord]
    verdict: VerdictRecord


class Commitments(_EvidenceRecord):
    """Hashes of everything that was fixed before the first query."""

    schema_version: Literal[1] = SCHEMA_VERSION
    created: str
    """ISO 8601, UTC, by the machine's clock; only the published hash of this file proves it."""
    plan: str
    """SHA-256 of plan.yaml."""
    code: str
    """SHA-256 over the files of the package."""
    version: str
    models: dict[str, str]
    """Reference to fingerprint: suspect, teachers, references."""
    logs: dict[str, str]
    """Teacher to the SHA-256 of its log."""
    resamples: dict[str, str]
    """Teacher to the SHA-256 of its resamples, if they were drawn before."""
    secrets: dict[str, str]
    """`TEACHER.watermark_key`, `TEACHER.canaries`: SHA-256 of a salt and the file, opened at the end."""


class CommitmentsRecord(_EvidenceRecord):
    """Whether the commitments were made before the first query."""

    sha256: str
    created: str
    first_query: str | None
    """Time of the first query of any transcript."""
    in_time: bool
    words: str


class Evidence(_EvidenceRecord):
    """Everything in a bundle except the transcripts."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    question: str
    created: str
    """ISO 8601, UTC."""
    suspect: ModelRecord
    references: list[ModelRecord] = Field(default_factory=list)
    teachers: list[TeacherRecord]
    hard: float
    alpha: float
    share: float
    seed: int
    commitments: CommitmentsRecord
    environment: dict[str, str]
    command: str
    signed_by: str | None = None
    """The Ed25519 public key, hexadecimal, of the signature in signature.json; None if unsigned."""
    files: dict[str, str]
    """Path relative to the bundle to SHA-256, of every file except this one and the signature."""


def finding_record(finding: Finding) -> FindingRecord:
    """The record of a finding."""
    return FindingRecord.model_validate(_finite(dataclasses.asdict(finding)))


def finding_from_record(record: FindingRecord) -> Finding:
    """The finding of a record."""
    fields: dict[str, Any] = record.model_dump()
    fields["assumptions"] = tuple(Assumption(**item) for item in fields["assumptions"])
    fields["rivals"] = tuple(record.rivals)
    return Finding(**fields)


def evidence_text(evidence: Evidence) -> str:
    """The text of ``evidence.json`` in its canonical, signed form: sorted keys, two spaces, UTF-8."""
    return json.dumps(evidence.model_dump(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def finite_e(value: float) -> float:
    """The e-value, limited to what JSON can hold."""
    return min(value, LARGEST)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        result = {key: _finite(inner) for key, inner in value.items()}
        if value.get("e_value") is not None:
            result["e_value"] = finite_e(value["e_value"])
        return result
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
