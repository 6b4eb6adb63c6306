"""What ``evidence.json`` and ``commitments.json`` hold: the one description of their fields, version 1.

Fields are only ever added within a version. What was not measured is null, and what does not apply is empty.
JSON has no infinity: an e-value beyond 1e300 is written as 1e300, which claims less, and other numbers that
are not finite are null.
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
    """The same test where there is nothing to find."""

    name: str
    """Which resample, key or account stood in."""
    p_value: float | None
    e_value: float | None


class PlannedTestRecord(_EvidenceRecord):
    """One planned test about one teacher."""

    test: str
    level: Level
    weight: float
    """In the mean of its level, before it was normalised; 0 is never combined."""
    transcript: str | None = None
    """The file that the finding is computed from, below the bundle."""
    hindrance: str | None = None
    """Why it was not begun: what the access lacks."""
    finding: FindingRecord | None = None
    placebos: list[PlaceboRecord] = Field(default_factory=list)


class LevelRecord(_EvidenceRecord):
    """See :class:`.combine.ClaimEvidence`."""

    level: Literal["L1", "L2"]
    e_value: float
    tests: list[str]
    needed: float
    claimed: bool


class VerdictRecord(_EvidenceRecord):
    """See :class:`.combine.Verdict`."""

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
    """Outputs that cannot, by reason."""
    warnings: list[str] = Field(default_factory=list)


class ModelRecord(_EvidenceRecord):
    """A model that was asked."""

    reference: str
    fingerprint: str | None
    can: list[str] = Field(default_factory=list)


class TeacherRecord(_EvidenceRecord):
    """Everything about one teacher."""

    name: str
    model: ModelRecord | None
    access: list[str]
    """What the plan gave of it."""
    log: DeliveredLogRecord
    tests: list[PlannedTestRecord]
    rungs: list[LevelRecord]
    verdict: VerdictRecord


class Commitments(_EvidenceRecord):
    """What was fixed, by its hash, before the first query."""

    schema_version: Literal[1] = SCHEMA_VERSION
    created: str
    """ISO 8601, UTC, by the machine's clock; to be believed, the hash of this file has to be published."""
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
    """Teacher to the SHA-256 of its resamples, where they were drawn before."""
    secrets: dict[str, str]
    """`TEACHER.watermark_key`, `TEACHER.canaries`: SHA-256 of a salt and the file; opened at the end."""


class CommitmentsRecord(_EvidenceRecord):
    """How the commitments stand to what was done."""

    sha256: str
    created: str
    first_query: str | None
    """When the first transcript was begun."""
    in_time: bool
    words: str


class Evidence(_EvidenceRecord):
    """A whole bundle but for the transcripts."""

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
    """The Ed25519 public key, hexadecimal, whose signature is in signature.json; None is unsigned."""
    files: dict[str, str]
    """Path below the bundle to SHA-256, of every file but this one and the signature."""


def finding_record(finding: Finding) -> FindingRecord:
    """A finding as it is written down."""
    return FindingRecord.model_validate(_finite(dataclasses.asdict(finding)))


def finding_from_record(part: FindingRecord) -> Finding:
    """A finding as it was written down."""
    fields: dict[str, Any] = part.model_dump()
    fields["assumptions"] = tuple(Assumption(**item) for item in fields["assumptions"])
    fields["rivals"] = tuple(part.rivals)
    return Finding(**fields)


def evidence_text(evidence: Evidence) -> str:
    """The bytes of ``evidence.json``, in the one form that is signed: sorted keys, two spaces, UTF-8."""
    return json.dumps(evidence.model_dump(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def finite_e(value: float) -> float:
    """An e-value that JSON can hold."""
    return min(value, LARGEST)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        found = {key: _finite(inner) for key, inner in value.items()}
        if value.get("e_value") is not None:
            found["e_value"] = finite_e(value["e_value"])
        return found
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
