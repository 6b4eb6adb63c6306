"""The comparison of the models in words: one headline, one sentence, and the change since before training.

The student is called ``better`` only if it is closer to its teacher than the control **and** than itself
before training. Each comparison uses the interval of the paired difference, which must lie wholly beyond a
practical margin (:data:`MARGINS`). Because both must hold, two comparisons need no correction (an
intersection-union test). A measure that got worse is always named in the headline.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from stillhouse.pages.numbers import decimals_for

Outcome = Literal["better", "improved", "small", "undecided", "mixed", "worse", "unmeasured"]
State = Literal["better", "worse", "negligible", "slight", "undecided"]

MARGINS = {"kl": 0.01, "agreement": 0.01, "nll": 0.01, "pass_at_1": 0.01}
"""The smallest difference that matters, for each measure.

0.01 nats per token changes a perplexity by 1%; 0.01 of a share is one token (or answer) in a hundred. Other
training seeds move the divergence by more (standard deviations of 0.03 nats per token in docs/lab-notes.md),
so a smaller difference between two single runs would often not survive a repetition.
"""

MEASURE_NAMES = {
    "kl": "divergence from the teacher",
    "agreement": "agreement with the teacher",
    "nll": "negative log-likelihood of the text",
    "pass_at_1": "pass@1",
}
SHORT_NAMES = {"kl": "KL", "agreement": "agreement", "nll": "NLL", "pass_at_1": "pass@1"}
HIGHER_IS_BETTER = ("agreement", "pass_at_1")
SHARES = ("agreement", "pass_at_1")
"""Measures that are shares; their differences are shown in percentage points."""

_GAINS = {
    "kl": "is closer to its teacher",
    "agreement": "agrees with the teacher's top token more often",
    "nll": "gives the text a higher likelihood",
    "pass_at_1": "answers correctly more often",
}
_LOSSES = {
    "kl": "is further from its teacher",
    "agreement": "agrees with the teacher's top token less often",
    "nll": "gives the text a lower likelihood",
    "pass_at_1": "answers correctly less often",
}
_TOPICS = {"kl": "closeness to the teacher", "nll": "the likelihood of the text"}


@dataclass(frozen=True)
class EvaluationVerdict:
    """What the measures show about the student.

    ``outcome`` is one of

    - ``better``: closer to the teacher than the control and than before training, by more than the margins;
    - ``improved``: closer than before training, and there is no control;
    - ``small``: the difference that decides is too small to matter, or may be;
    - ``undecided``: the difference that decides has no interval, or one that includes zero;
    - ``mixed``: some measures got better and others worse;
    - ``worse``: worse than before training or than the control;
    - ``unmeasured``: there is nothing to compare the student with.
    """

    outcome: Outcome
    against: str | None
    """The model whose comparison decided the outcome: ``before`` or ``control``."""
    headline: str
    sentence: str
    since_before: str | None = None
    """The student minus itself before training, by measure, with intervals."""
    margins: dict[str, float] = field(default_factory=dict)
    """The smallest difference that matters, for each measure."""


@dataclass(frozen=True)
class _Comparison:
    """The states of all measures in the comparison with one model."""

    against: str
    differences: Mapping[str, Mapping[str, Any]]
    states: Mapping[str, State]

    @property
    def primary(self) -> str:
        """The measure that decides if nothing got worse: the divergence, or without it the likelihood."""
        return "kl" if "kl" in self.states else "nll"

    def improved(self) -> list[str]:
        return [measure for measure, state in self.states.items() if state == "better"]

    def worsened(self) -> list[str]:
        return [
            measure for measure, state in self.states.items() if state == "worse" and self._counts(measure)
        ]

    def _counts(self, measure: str) -> bool:
        """The control is trained on the likelihood alone: to lose to it there is named, but is no failure."""
        return measure != "nll" or self.against != "control" or self.primary == "nll"

    @property
    def outcome(self) -> Outcome:
        if self.worsened():
            return "mixed" if self.improved() else "worse"
        state = self.states[self.primary]
        if state == "better":
            return "better"
        return "small" if state in ("negligible", "slight") else "undecided"


def judge_comparison(comparison: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> EvaluationVerdict:
    """Compares the student with itself before training and with the control.

    The divergence decides if it was measured, else the likelihood of the text.

    Args:
        comparison: for ``control`` and ``before``, the student's paired differences by measure (see
            :class:`.schema.DifferenceEntry`).
        models: their entries in the report; used only if there is nothing to compare with.
    """
    before, control = (_compare(key, comparison.get(key)) for key in ("before", "control"))
    since_before = None if before is None else _since_before(before)
    if before is None and control is None:
        headline, sentence = "Measured, not compared", _alone(models)
        return EvaluationVerdict("unmeasured", None, headline, sentence, None, dict(MARGINS))
    deciding, outcome = _decide(before, control)
    headline = _headline(outcome, deciding, before, control)
    return EvaluationVerdict(
        outcome, deciding.against, headline, _sentence(deciding), since_before, dict(MARGINS)
    )


def state_of(measure: str, difference: Mapping[str, Any], margin: float | None = None) -> State:
    """What the interval of a difference student − other shows.

    - ``better``: it lies wholly beyond the margin, on the student's side;
    - ``slight``: it lies on the student's side of zero, but not wholly beyond the margin;
    - ``negligible``: it lies wholly within the margin, on either side of zero;
    - ``worse``: it lies on the other side of zero, and is not negligible;
    - ``undecided``: it includes zero and reaches beyond the margin, or there is no interval.
    """
    if difference["low"] is None or difference["high"] is None:
        return "undecided"
    limit = MARGINS[measure] if margin is None else margin
    low, high = difference["low"], difference["high"]
    if measure in HIGHER_IS_BETTER:
        low, high = -high, -low
    if high < -limit:
        return "better"
    if -limit <= low and high <= limit:
        return "negligible"
    if low > 0:
        return "worse"
    return "slight" if high < 0 else "undecided"


def difference_text(measure: str, difference: Mapping[str, Any]) -> str:
    """``−0.138 [−0.159, −0.117] nats per token`` or ``−4.3 [−8.2, −0.4] points``."""
    value, low, high = _shown(measure, difference)
    ends = "" if low is None else f" [{low}, {high}]"
    return f"{value}{ends} {'points' if measure in SHARES else 'nats per token'}"


def _compare(against: str, entry: Mapping[str, Any] | None) -> _Comparison | None:
    differences = {measure: entry[measure] for measure in MARGINS if entry.get(measure)} if entry else {}
    if not differences.keys() & {"kl", "nll"}:
        return None
    states: dict[str, State] = {
        measure: state_of(measure, difference) for measure, difference in differences.items()
    }
    return _Comparison(against, differences, states)


def _decide(before: _Comparison | None, control: _Comparison | None) -> tuple[_Comparison, Outcome]:
    """The comparison that decides, and the outcome: losses first, those since before training above all."""
    compared = [comparison for comparison in (before, control) if comparison is not None]
    for comparison in compared:
        if comparison.worsened():
            return comparison, comparison.outcome
    for comparison in compared:
        if comparison.outcome != "better":
            return comparison, comparison.outcome
    if before is not None and control is not None:
        return control, "better"
    if before is not None:
        return before, "improved"
    return compared[0], "undecided"  # better than the control, but perhaps not than before training


def _headline(
    outcome: Outcome, deciding: _Comparison, before: _Comparison | None, control: _Comparison | None
) -> str:
    measure, against = deciding.primary, deciding.against
    if outcome in ("worse", "mixed"):
        losses = _phrases(deciding.worsened(), _LOSSES)
        if outcome == "mixed":
            start = "Training helped and hurt" if against == "before" else "Better and worse than the control"
            headline = f"{start}: the student {_phrases(deciding.improved(), _GAINS)}, but {losses}"
        elif against == "before":
            headline = f"Training made the student worse: it {losses}"
        else:
            headline = f"Worse than the control: the student {losses}"
    elif outcome == "better":
        headline = f"The student {_GAINS[measure]} than the control and than before training"
    elif outcome == "improved":
        headline = f"The student {_GAINS[measure]} than before training"
    elif before is None and deciding.outcome == "better":
        headline = f"The student {_GAINS[measure]} than the control; before training was not measured"
    elif against == "before":
        headline = _no_effect(deciding)
    else:
        headline = _no_lead(deciding, improved=before is not None)
    return headline + "".join(_qualifications(deciding, control))


def _no_effect(since_before: _Comparison) -> str:
    """Training did not change the measure that decides, or not enough."""
    topic = _TOPICS[since_before.primary]
    return {
        "negligible": f"Training changed {topic} by too little to matter",
        "slight": f"Training improved {topic}, perhaps by too little to matter",
    }.get(since_before.states[since_before.primary], f"Training had no measurable effect on {topic}")


def _no_lead(control: _Comparison, *, improved: bool) -> str:
    """The student is no better than the control, although it may be better than before training."""
    measure = control.primary
    state = control.states[measure]
    topic = _TOPICS[measure]
    if not improved:
        return {
            "negligible": f"Student and control differ in {topic} by too little to matter",
            "slight": f"Student and control differ in {topic}, perhaps by too little to matter",
        }.get(state, f"Student and control do not differ measurably in {topic}")
    gain = f"The student {_GAINS[measure]} than before training"
    return {
        "negligible": f"{gain}, but its difference from the control is too small to matter",
        "slight": f"{gain}, but its lead over the control may be too small to matter",
    }.get(state, f"{gain}, but does not differ measurably from the control")


def _qualifications(deciding: _Comparison, control: _Comparison | None) -> Iterator[str]:
    """What the headline must add: losses to the control, or a gain in another measure."""
    others = [measure for measure in deciding.improved() if measure != deciding.primary]
    if deciding.outcome in ("small", "undecided") and others:
        yield f"; the student {_phrases(others, _GAINS)}"
    if control is not None and deciding is not control and control.worsened():
        yield f"; compared with the control, it {_phrases(control.worsened(), _LOSSES)}"
    elif control is not None and control.primary == "kl" and control.states.get("nll") == "worse":
        yield f", but {_LOSSES['nll']} than the control"


def _phrases(measures: Sequence[str], phrases: Mapping[str, str]) -> str:
    *most, last = [phrases[measure] for measure in measures]
    return f"{', '.join(most)} and {last}" if most else last


def _sentence(deciding: _Comparison) -> str:
    """The measure that decided, with its interval and what follows from it; then other losses."""
    worsened = deciding.worsened()
    measures = worsened if worsened and deciding.primary not in worsened else [deciding.primary, *worsened]
    first = measures[0]
    text = _difference_sentence(first, deciding)
    extra = [m for m in dict.fromkeys(measures) if m != first]
    if "nll" not in measures and deciding.states.get("nll") == "worse":
        extra.append("nll")
    others = [f"{SHORT_NAMES[m]} {difference_text(m, deciding.differences[m])}" for m in extra]
    return f"{text}." if not others else f"{text}; difference in {', in '.join(others)}."


def _difference_sentence(measure: str, deciding: _Comparison) -> str:
    difference = deciding.differences[measure]
    value, low, high = _shown(measure, difference)
    assert value is not None
    unit = "points" if measure in SHARES else "nats per token"
    direction = "lower" if value.startswith("−") else "higher"
    than = "than that of the control" if deciding.against == "control" else "than before training"
    text = (
        f"{_documents(difference)} the student's {MEASURE_NAMES[measure]} is "
        f"{value.lstrip('+−')} {unit} {direction} {than}"
    )
    if low is None or high is None:
        return f"{text}; one document gives no interval, so this is not conclusive"
    level = f"{difference['confidence']:.0%} interval of the paired difference"
    state = deciding.states[measure]
    if difference["low"] <= 0 <= difference["high"]:
        comment = f"and the {level}, {_range(low, high)}, includes zero"
        if state == "negligible":
            comment += f" and does not reach the margin of {_margin(measure)}"
        return f"{text}, {comment}"
    comment = {
        "negligible": f"; a difference below the margin of {_margin(measure)} does not matter",
        "slight": f"; it is not wholly beyond the margin of {_margin(measure)}",
    }.get(state, ", clustered by document")
    return f"{text} ({level}: {_range(low, high)}{comment})"


def _range(low: str, high: str) -> str:
    """An interval in the words of the sentence: ``0.117 to 0.159 lower``, ``0.542 lower to 0.035 higher``."""
    if low.startswith("−") and high.startswith("−"):
        return f"{high[1:]} to {low[1:]} lower"
    if low.startswith("−"):
        return f"{low[1:]} lower to {high[1:]} higher"
    return f"{low[1:]} to {high[1:]} higher"


def _alone(models: Sequence[Mapping[str, Any]]) -> str:
    """The student's own value, if there is no other student to compare it with."""
    student = next(m for m in models if m["key"] == "student")
    measure = "kl" if student["kl"] else "nll"
    value, low, high = (student[measure][end] for end in ("value", "low", "high"))
    text = (
        f"{_documents(student[measure])} the student's {MEASURE_NAMES[measure]} is {value:.3f} nats per token"
    )
    if low is None:
        return f"{text}; one document gives no interval."
    level = f"{student[measure]['confidence']:.0%} interval, clustered by document: {low:.3f} to {high:.3f}"
    return f"{text} ({level})."


def _since_before(before: _Comparison) -> str:
    parts = [f"{SHORT_NAMES[m]} {difference_text(m, d)}" for m, d in before.differences.items()]
    return f"Student − before training: {'; '.join(parts)}."


def _documents(estimate: Mapping[str, Any]) -> str:
    return f"On {estimate['documents']:,} held-out document{'s' if estimate['documents'] != 1 else ''}"


def _margin(measure: str) -> str:
    if measure in SHARES:
        return f"{100 * MARGINS[measure]:g} point"
    return f"{MARGINS[measure]:g} nats per token"


def _shown(measure: str, difference: Mapping[str, Any]) -> tuple[str | None, ...]:
    """Value and both ends with signs, in points or nats."""
    scale, decimals = (100, 1) if measure in SHARES else (1, 3)
    exact = decimals_for(difference, scale, most=6)
    decimals = exact if exact > decimals + 1 else decimals  # so that no interval reads as [0.000, 0.000]
    return tuple(
        None if difference[end] is None else f"{scale * difference[end]:+.{decimals}f}".replace("-", "−")
        for end in ("value", "low", "high")
    )
