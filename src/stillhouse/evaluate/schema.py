"""What ``report.json`` holds: the one description of its fields, version 1.

Fields are only ever added within a version. A measure that was not taken is null, and a
section that does not apply is empty; nothing is left out of the file.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1

ModelKey = Literal["teacher", "before", "offline", "student", "control"]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EstimateEntry(_Entry):
    """A value with its interval, clustered by document; ends are null for a single document.

    JSON has no infinity: a perplexity beyond the largest number is null too.
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
    """Of the weight files as saved, or of the weights in memory where there is no file."""
    format: str = ""
    """``GGUF``, ``safetensors`` or ``in memory``."""
    kl: EstimateEntry | None = None
    """KL(teacher ‖ model), nats per counted token."""
    agreement: EstimateEntry | None = None
    """Share of counted positions whose likeliest token is the teacher's."""
    nll: EstimateEntry | None = None
    """Negative log-likelihood of the held-out text, nats per counted token."""
    perplexity: EstimateEntry
    """exp of ``nll``."""
    tokens_per_s: SpeedEntry | None = None
    """Writing: greedy, batch size 1."""
    scored_tokens_per_s: SpeedEntry | None = None
    """Reading: one text at a time."""
    pass_at_1: EstimateEntry | None = None
    """Share of sampled answers to held-out prompts that the verifiers found right; clustered by prompt."""
    consensus_at_k: EstimateEntry | None = None
    """Share of held-out prompts whose majority answer is right."""
    samples: int | None = None
    """Answers to each prompt for these two."""


class DifferenceEntry(_Entry):
    """Student minus another model, paired by document: for kl and nll, below zero favours the student."""

    kl: EstimateEntry | None = None
    agreement: EstimateEntry | None = None
    nll: EstimateEntry | None = None


class VerdictEntry(_Entry):
    """The comparison in words (see :mod:`.verdict`)."""

    outcome: Literal["better", "worse", "undecided", "unmeasured"]
    against: str | None
    headline: str
    sentence: str


class StepEntry(BaseModel):
    """One optimizer step; further fields of ``metrics.jsonl`` are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)

    step: int
    loss: float | None
    tokens: int


class AnswerEntry(_Entry):
    """One held-out prompt and what each model said to it."""

    prompt: str
    messages: list[dict[str, Any]] = Field(default_factory=list)
    replies: dict[ModelKey, str]


class StageEntry(BaseModel):
    """One stage of the run; further facts are kept."""

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
    """What the student minimised, e.g. ``forward_kl``; the control always minimises cross-entropy."""
    models: list[ModelEntry]
    comparison: dict[Literal["control", "before", "offline"], DifferenceEntry] = Field(default_factory=dict)
    verdict: VerdictEntry
    held_out: dict[str, int]
    """``documents`` and counted ``tokens``."""
    conditions: dict[str, Any] = Field(default_factory=dict)
    """How the numbers were taken: type, device, threads, rounds."""
    training: dict[Literal["offline", "student", "control"], list[StepEntry]] = Field(default_factory=dict)
    answers: list[AnswerEntry] = Field(default_factory=list)
    corpus: dict[str, Any] = Field(default_factory=dict)
    """Counts by name; ``rejected`` holds counts by reason."""
    student_facts: dict[str, Any] = Field(default_factory=dict)
    """How the student was made; ``influence`` (one number a layer of the parent) and ``keep`` are drawn."""
    stages: list[StageEntry] = Field(default_factory=list)
    terms: dict[str, Any] = Field(default_factory=dict)
    lineage: dict[str, Any] = Field(default_factory=dict)
    """Names and hashes of what the student comes from."""
    recipe: str = ""
    """The resolved recipe, YAML."""
    environment: dict[str, Any] = Field(default_factory=dict)
    command: str = ""
    """What to type to do it again."""
