"""The comparison in words: one headline and one sentence, and when neither may be said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["better", "worse", "undecided", "unmeasured"]

NAMES = {"control": "the control", "before": "the student before training"}


@dataclass(frozen=True)
class Finding:
    """What the numbers allow to be said of the student.

    ``outcome`` is about the student against ``against``: ``better`` and ``worse`` only when the
    interval of the paired difference leaves out zero.
    """

    outcome: Outcome
    against: str | None
    headline: str
    sentence: str


def find(comparison: Mapping[str, Any]) -> Finding:
    """Judges the student against the control, or where there is none against itself before training.

    Divergence decides where the teacher's probabilities were measured, else the likelihood of the text.

    Args:
        comparison: for ``control`` and ``before``, the student's paired differences by measure (see
            :class:`.schema.Comparison`).
    """
    against = next((key for key in ("control", "before") if comparison.get(key)), None)
    if against is None:
        return Finding("unmeasured", None, "Nothing to compare with", "Only one model was measured.")
    differences = comparison[against]
    measure = "kl" if differences.get("kl") else "nll"
    difference = differences[measure]
    outcome = _outcome(difference)
    return Finding(
        outcome,
        against,
        _headline(outcome, against),
        _sentence(outcome, difference, measure, NAMES[against]),
    )


def _outcome(difference: Mapping[str, Any]) -> Outcome:
    if difference["low"] is None:
        return "undecided"
    if difference["high"] < 0:
        return "better"
    return "worse" if difference["low"] > 0 else "undecided"


def _headline(outcome: Outcome, against: str) -> str:
    if against == "control":
        return {
            "better": "Distillation beats the control",
            "worse": "The control beats distillation",
        }.get(outcome, "Distillation and the control cannot be told apart")
    return {
        "better": "Training brought the student nearer to its teacher",
        "worse": "Training took the student further from its teacher",
    }.get(outcome, "No effect of the training can be told")


def _sentence(outcome: Outcome, difference: Mapping[str, Any], measure: str, other: str) -> str:
    value, low, high = difference["value"], difference["low"], difference["high"]
    what = {
        "kl": "divergence from the teacher",
        "nll": "negative log-likelihood of the teacher's text",
    }[measure]
    documents = f"{difference['documents']:,} held-out document{'s' if difference['documents'] != 1 else ''}"
    direction = "lower" if value < 0 else "higher"
    text = f"On {documents} the student's {what} is {abs(value):.3f} nats per token {direction} than that of {other}"
    if low is None or high is None:
        return f"{text}; one document gives no interval, so nothing follows."
    level = f"{difference['confidence']:.0%} interval of the paired difference"
    if outcome == "undecided":
        return f"{text}, and the {level}, {low:+.3f} to {high:+.3f}, includes zero."
    ends = sorted((abs(low), abs(high)))
    return f"{text} ({level}: {ends[0]:.3f} to {ends[1]:.3f}, clustered by document)."
