"""The comparison of the models in words: one headline and one sentence.

They claim an effect only if the interval of the paired difference excludes zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["better", "worse", "undecided", "unmeasured"]

MEASURE_NAMES = {"kl": "divergence from the teacher", "nll": "negative log-likelihood of the text"}
MODEL_NAMES = {"control": "the control", "before": "the student before training"}


@dataclass(frozen=True)
class EvaluationVerdict:
    """What the measures show about the student.

    ``outcome`` compares the student with the model ``against``: it is ``better`` or ``worse`` only if
    the interval of the paired difference excludes zero.
    """

    outcome: Outcome
    against: str | None
    headline: str
    sentence: str


def judge_comparison(comparison: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> EvaluationVerdict:
    """Compares the student with the control, or without one with itself before training.

    The divergence decides if it was measured, else the likelihood of the text.

    Args:
        comparison: for ``control`` and ``before``, the student's paired differences by measure (see
            :class:`.schema.DifferenceEntry`).
        models: their entries in the report; used only if there is nothing to compare with.
    """
    # the control first: to beat one's own start is a much weaker result
    against = next((key for key in ("control", "before") if comparison.get(key)), None)
    if against is None:
        return _alone(next(m for m in models if m["key"] == "student"))
    differences = comparison[against]
    measure = "kl" if differences.get("kl") else "nll"
    difference = differences[measure]
    outcome = _outcome(difference)
    likelihood = differences.get("nll") if measure == "kl" else None
    sentence = _sentence(outcome, difference, measure, MODEL_NAMES[against])
    headline = _headline(outcome, against, measure)
    if likelihood is not None and _outcome(likelihood) == "worse":
        worse = f"{likelihood['value']:.3f} nats per token worse"
        sentence = f"{sentence.removesuffix('.')}; its likelihood of the text is {worse}."
        headline += ", but gives the text a lower likelihood" if outcome == "better" else ""
    return EvaluationVerdict(outcome, against, headline, sentence)


def _alone(student: Mapping[str, Any]) -> EvaluationVerdict:
    """The student's own value, if there is no other student to compare it with."""
    measure = "kl" if student["kl"] else "nll"
    value, low, high = (student[measure][field] for field in ("value", "low", "high"))
    text = (
        f"{_documents(student[measure])} the student's {MEASURE_NAMES[measure]} is {value:.3f} nats per token"
    )
    if low is None:
        return EvaluationVerdict(
            "unmeasured", None, "Measured, not compared", f"{text}; one document gives no interval."
        )
    level = f"{student[measure]['confidence']:.0%} interval, clustered by document: {low:.3f} to {high:.3f}"
    return EvaluationVerdict("unmeasured", None, "Measured, not compared", f"{text} ({level}).")


def _documents(estimate: Mapping[str, Any]) -> str:
    return f"On {estimate['documents']:,} held-out document{'s' if estimate['documents'] != 1 else ''}"


def _outcome(difference: Mapping[str, Any]) -> Outcome:
    if difference["low"] is None:
        return "undecided"
    if difference["high"] < 0:  # student minus other, and for both measures less is better
        return "better"
    return "worse" if difference["low"] > 0 else "undecided"


def _headline(outcome: Outcome, against: str, measure: str) -> str:
    """Claims no more than was measured: closeness to the teacher, or the likelihood of the text."""
    if against == "control" and measure == "kl":
        return {
            "better": "The student is closer to its teacher than the control",
            "worse": "The control is closer to the teacher than the student",
        }.get(outcome, "Student and control do not differ measurably in closeness to the teacher")
    if measure == "nll":
        other = "than the control" if against == "control" else "than before training"
        return {
            "better": f"The student gives the text a higher likelihood {other}",
            "worse": f"The student gives the text a lower likelihood {other}",
        }.get(
            outcome, f"The text's likelihood does not differ measurably from that of {MODEL_NAMES[against]}"
        )
    return {
        "better": "Training brought the student closer to its teacher",
        "worse": "Training moved the student away from its teacher",
    }.get(outcome, "Training had no measurable effect")


def _sentence(outcome: Outcome, difference: Mapping[str, Any], measure: str, other: str) -> str:
    value, low, high = difference["value"], difference["low"], difference["high"]
    direction = "lower" if value < 0 else "higher"
    amount = f"{abs(value):.3f} nats per token {direction} than that of {other}"
    text = f"{_documents(difference)} the student's {MEASURE_NAMES[measure]} is {amount}"
    if low is None or high is None:
        return f"{text}; one document gives no interval, so this is not conclusive."
    level = f"{difference['confidence']:.0%} interval of the paired difference"
    if outcome == "undecided":
        return f"{text}, and the {level}, {_signed(low)} to {_signed(high)}, includes zero."
    ends = sorted((abs(low), abs(high)))
    return f"{text} ({level}: {ends[0]:.3f} to {ends[1]:.3f}, clustered by document)."


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")
