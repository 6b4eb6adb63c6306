"""Several findings, one verdict: how evidence adds up, and the words for what it shows.

Within a level the e-values are merged by their weighted arithmetic mean, with weights from the plan: the only
admissible way to merge e-values whose dependence nobody knows (Wang 2024, arXiv:2409.19888). A test that was
planned and could not be finished counts as 1, whatever the reason, so that nothing is gained by refusing.

The levels are nested: who was trained on outputs delivered to these accounts (L2) was exposed to the
teacher's outputs (L1). So evidence at L2 counts towards L1 too, and L2 is claimed only where L1 is (closed
testing). With several teachers each has its ladder, and a rung is claimed at an e-value of ``hard`` times the
number of ladders still open: Holm's procedure on p = 1/E, carried up the ladders (a sequentially rejective
graph: Bretz, Maurer, Brannath and Posch 2009, Statistics in Medicine 28). The probability that any claim is
false is then at most 1/``hard``, over all teachers and both levels together.

No verdict says how likely it is that somebody did something: that needs a prior, which is not ours to have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from stillhouse.pages.numbers import format_percent, format_scientific
from stillhouse.stats import weighted_mean
from stillhouse.trace.detectors.registry import DETECTORS
from stillhouse.trace.finding import Finding

ClaimLevel = Literal["L1", "L2"]
CLAIM_LEVELS: tuple[ClaimLevel, ...] = ("L1", "L2")
Outcome = Literal["hard", "bound", "inconclusive"]

CLAIMS = {
    "L1": "the suspect was exposed to this teacher's outputs, by whatever route",
    "L2": "the suspect was trained on outputs that were delivered to these accounts",
}
NULLS = {
    "L1": "had not been exposed to this teacher's outputs by any route",
    "L2": "had not been trained on outputs delivered to these accounts",
}
CLAIMS_OF_TEXTS = {
    "L1": "the suspect was exposed to these texts as they were published, by whatever route",
    "L2": "the suspect was trained on these texts as they were published",
}
NULLS_OF_TEXTS = {
    "L1": "had not been exposed to these texts by any route",
    "L2": "had not been trained on these texts as they were published",
}
WEIGHTS = "weights"
"""The level of tests that compare the models themselves."""
CLAIM_OF_WEIGHTS = "the suspect was made from this teacher's own weights, or both from the same"
NOT_SHOWN = (
    "Nothing here is the probability that somebody did something. Who trained the suspect, on purpose or "
    "not, and how outputs came into its training data are questions for logs and witnesses."
)


@dataclass(frozen=True)
class WeightedFinding:
    """A planned test's finding and its pre-registered weight; without a finding it could not be finished."""

    test: str
    level: str
    weight: float
    finding: Finding | None

    @property
    def e_value(self) -> float:
        """1 where there is none: evidence of nothing."""
        found = self.finding
        return 1.0 if found is None or found.e_value is None else found.e_value


@dataclass(frozen=True)
class ClaimEvidence:
    """What there is for one claim about one teacher."""

    level: ClaimLevel
    e_value: float
    tests: tuple[str, ...]
    """Whose e-values were merged."""
    needed: float
    """The e-value that the claim took, or would have taken."""
    claimed: bool


@dataclass(frozen=True)
class Verdict:
    """What can be said about one teacher, in words that were fixed in advance."""

    outcome: Outcome
    level: ClaimLevel | None
    headline: str
    sentence: str


def only_about_texts(tests: Iterable[str]) -> bool:
    """Whether there are tests, and all are about an author's texts instead of a teacher's outputs."""
    about_texts = [test in DETECTORS and DETECTORS[test].about_texts for test in tests]
    return bool(about_texts) and all(about_texts)


def claim(level: ClaimLevel, tests: Sequence[str]) -> str:
    """What evidence by ``tests`` is evidence of."""
    return (CLAIMS_OF_TEXTS if only_about_texts(tests) else CLAIMS)[level]


def null(level: ClaimLevel, tests: Sequence[str]) -> str:
    """What is not so where the claim is: follows "if it"."""
    return (NULLS_OF_TEXTS if only_about_texts(tests) else NULLS)[level]


def merge_evidence(
    tests: Sequence[WeightedFinding], level: ClaimLevel
) -> tuple[float, tuple[str, ...]] | None:
    """The e-value for a claim and the tests in it; None where no test bears on it."""
    bearing = [t for t in tests if t.weight > 0 and (t.level == "L2" or t.level == level)]
    if not bearing:
        return None
    e_value = weighted_mean([t.e_value for t in bearing], [t.weight for t in bearing])
    return float(e_value), tuple(t.test for t in bearing)


def decide_claims(
    teachers: Mapping[str, Sequence[WeightedFinding]], hard: float
) -> dict[str, list[ClaimEvidence]]:
    """Which rungs each teacher's evidence reaches, all teachers considered together.

    Args:
        hard: the e-value of hard evidence.

    Returns:
        For each teacher its rungs from the lowest up, those that any test bears on.
    """
    evidence: dict[str, dict[ClaimLevel, tuple[float, tuple[str, ...]]]] = {
        name: {rung: found for rung in CLAIM_LEVELS if (found := merge_evidence(tests, rung))}
        for name, tests in teachers.items()
    }
    ahead = {name: list(rungs) for name, rungs in evidence.items() if rungs}
    claimed: dict[tuple[str, ClaimLevel], float] = {}
    moving = True
    while moving:
        moving = False
        for name, rungs in list(ahead.items()):
            needed = hard * len(ahead)
            if evidence[name][rungs[0]][0] < needed:
                continue
            moving = True
            claimed[name, rungs.pop(0)] = needed
            if not rungs:
                del ahead[name]
    return {
        name: [
            ClaimEvidence(
                level=rung,
                e_value=e_value,
                tests=tests,
                needed=claimed.get((name, rung), hard * max(1, len(ahead))),
                claimed=(name, rung) in claimed,
            )
            for rung, (e_value, tests) in rungs.items()
        ]
        for name, rungs in evidence.items()
    }


def weights_claims(teachers: Mapping[str, Sequence[WeightedFinding]], hard: float) -> dict[str, str]:
    """What is said of teachers whose weights are those that the suspect was made from, by name.

    A claim of its own, beside the ladder. Tests of it are merged by their mean, and each of several teachers
    needs that many times more.
    """
    found = {}
    for name, tests in teachers.items():
        e_values = [t.e_value for t in tests if t.level == WEIGHTS]
        if e_values:
            found[name] = float(weighted_mean(e_values, [1.0] * len(e_values)))
    needed = hard * len(found)
    return {
        name: f"Apart from that, there is hard evidence that {CLAIM_OF_WEIGHTS} "
        f"(E = {format_scientific(e_value)}, and {format_scientific(needed)} is called hard). "
        "That shows nothing of what either was trained on."
        for name, e_value in found.items()
        if e_value >= needed
    }


def verdict(
    rungs: Sequence[ClaimEvidence],
    tests: Sequence[WeightedFinding],
    *,
    share: float,
    alpha: float,
    of_weights: str | None = None,
) -> Verdict:
    """The verdict on one teacher.

    Args:
        rungs: its part of :func:`decide_claims`.
        tests: what they were made of; their effects hold the bound and the power.
        share: the smallest share of the log that would matter.
        alpha: one minus the confidence of the bound.
        of_weights: its part of :func:`weights_claims`, which ends the sentence.
    """
    found = _on_the_ladder(rungs, tests, share, alpha)
    return replace(found, sentence=f"{found.sentence} {of_weights}") if of_weights else found


def _on_the_ladder(
    rungs: Sequence[ClaimEvidence], tests: Sequence[WeightedFinding], share: float, alpha: float
) -> Verdict:
    if claimed := [rung for rung in rungs if rung.claimed]:
        return _hard(claimed[-1])
    most = _effect(tests, "f_high")
    if most is not None and most <= share:
        return Verdict(
            "bound",
            None,
            f"Bound: f below {most:.2g}",
            f"With {format_percent(1 - alpha)} confidence less than {format_percent(most)} of the log was "
            "used, if outputs that are used leave the trace that they left in the surrogate model. "
            "This is a bound and no more; it says nothing of outputs outside this log.",
        )
    power = _effect(tests, "power")
    if not rungs:
        why = "No test could be run that bears on a claim."
    else:
        best = max(rungs, key=lambda rung: rung.e_value)
        why = (
            f"The evidence is E = {format_scientific(best.e_value)}, "
            f"and {format_scientific(best.needed)} is called hard."
        )
    told = "power unknown" if power is None else f"power {format_percent(power)}"
    if power is None:
        then = "How likely these tests were to find use at all is unknown without a surrogate model."
    else:
        then = (
            f"Had {format_percent(share)} of the log been used, these tests would have given hard evidence "
            f"with a probability of about {format_percent(power)}."
        )
    return Verdict(
        "inconclusive", None, f"Inconclusive ({told})", f"{why} {then} Nothing is shown, either way."
    )


def _hard(rung: ClaimEvidence) -> Verdict:
    return Verdict(
        "hard",
        rung.level,
        f"Hard evidence at level {rung.level}",
        f"The evidence is that {claim(rung.level, rung.tests)}. "
        f"If it {null(rung.level, rung.tests)}, and the assumptions hold, "
        f"evidence of E ≥ {format_scientific(rung.needed)} would come up in at most one of "
        f"{format_scientific(rung.needed)} such traces; here E = {format_scientific(rung.e_value)}. "
        "The explanations that remain are listed with each test.",
    )


def _effect(tests: Sequence[WeightedFinding], name: str) -> float | None:
    """The smallest bound, or the largest power, that a test at L2 reports."""
    found = [
        value
        for t in tests
        if t.level == "L2" and t.finding is not None and (value := t.finding.effect.get(name)) is not None
    ]
    return (max if name == "power" else min)(found, default=None)
