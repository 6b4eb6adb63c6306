"""The schema of ``report.json``, version 1.

Within a version, fields are only added. A measure that was not taken is null, and a
section that does not apply is empty; no field is left out of the file.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1

ModelKey = Literal["teacher", "before", "offline", "student", "control"]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EstimateEntry(_Entry):
    """A value with its interval, clustered by document; the ends are null for a single document.

    JSON has no infinity: a perplexity beyond the largest float is null too.
    """

    value: float | None
    low: float | None
    high: float | None
    documents: int
    confidence: float


class SpeedEntry(_Entry):
    """Tokens per second: the median of the rounds, the slowest and the fastest."""

    median: float
    low: float
    high: float


class ModelEntry(_Entry):
    """One model, in the order of the tables."""

    key: ModelKey
    label: str
    parameters: int
    """Tied weights count once."""
    bytes: int
    """Size of the saved weight files, or of the weights in memory if there is no file."""
    format: str = ""
    """``GGUF``, ``safetensors`` or ``in memory``."""
    kl: EstimateEntry | None = None
    """KL(teacher ‖ model), nats per counted token."""
    agreement: EstimateEntry | None = None
    """Share of counted positions whose most likely token is the teacher's."""
    nll: EstimateEntry | None = None
    """Negative log-likelihood of the held-out text, nats per counted token."""
    perplexity: EstimateEntry
    """exp of ``nll``."""
    tokens_per_s: SpeedEntry | None = None
    """Generation: greedy, batch size 1."""
    scored_tokens_per_s: SpeedEntry | None = None
    """One forward pass over a text, batch size 1."""
    pass_at_1: EstimateEntry | None = None
    """Share of sampled answers to held-out prompts that the verifiers accept; clustered by prompt."""
    consensus_at_k: EstimateEntry | None = None
    """Share of held-out prompts whose majority answer is correct."""
    samples: int | None = None
    """Answers to each prompt for ``pass_at_1`` and ``consensus_at_k``."""


class DifferenceEntry(_Entry):
    """Student minus another model, paired by document: for kl and nll, below zero favours the student."""

    kl: EstimateEntry | None = None
    agreement: EstimateEntry | None = None
    nll: EstimateEntry | None = None
    pass_at_1: EstimateEntry | None = None
    """Paired by prompt."""


class VerdictEntry(_Entry):
    """The comparison in words (see :mod:`.verdict`)."""

    outcome: Literal["better", "improved", "small", "undecided", "mixed", "worse", "unmeasured"]
    against: str | None
    headline: str
    sentence: str
    since_before: str | None = None
    """The student minus itself before training, in one sentence."""
    margins: dict[str, float] = Field(default_factory=dict)
    """The smallest difference that matters, for each measure."""


class StepEntry(BaseModel):
    """One optimizer step; other fields of ``metrics.jsonl`` are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)

    step: int
    loss: float | None
    tokens: int


class AnswerEntry(_Entry):
    """One held-out prompt and each model's reply."""

    prompt: str
    messages: list[dict[str, Any]] = Field(default_factory=list)
    replies: dict[ModelKey, str]


class StageEntry(BaseModel):
    """One stage of the run; other fields are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    seconds: float


class Report(_Entry):
    """A whole report."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    created: str
    """ISO 8601, UTC."""
    objective: str = ""
    """The student's training objective, e.g. ``forward_kl``; that of the control is always cross-entropy."""
    models: list[ModelEntry]
    comparison: dict[Literal["control", "before", "offline"], DifferenceEntry] = Field(default_factory=dict)
    verdict: VerdictEntry
    held_out: dict[str, int]
    """``documents`` and counted ``tokens``."""
    conditions: dict[str, Any] = Field(default_factory=dict)
    """Conditions of the measurement: data type, device, threads, rounds."""
    training: dict[Literal["offline", "student", "control"], list[StepEntry]] = Field(default_factory=dict)
    answers: list[AnswerEntry] = Field(default_factory=list)
    corpus: dict[str, Any] = Field(default_factory=dict)
    """Counts by name; ``rejected`` holds counts by reason."""
    student_facts: dict[str, Any] = Field(default_factory=dict)
    """How the student was built; ``influence`` (one number for each layer of the parent) and ``keep`` are
    plotted."""
    stages: list[StageEntry] = Field(default_factory=list)
    terms: dict[str, Any] = Field(default_factory=dict)
    lineage: dict[str, Any] = Field(default_factory=dict)
    """Names and hashes of the student's origins."""
    recipe: str = ""
    """The resolved recipe, YAML."""
    environment: dict[str, Any] = Field(default_factory=dict)
    command: str = ""
    """The command that repeats the run."""
