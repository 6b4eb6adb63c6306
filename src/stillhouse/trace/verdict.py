"""Verdicts: merges the findings about each teacher and decides which claims they support.

Within a level, e-values are merged by their weighted arithmetic mean, with weights from the plan: the only
admissible way to merge e-values whose dependence is unknown (Wang 2024, arXiv:2409.19888). A planned test
that could not be finished counts as 1, whatever the reason, so that a suspect gains nothing by refusing.

The levels are nested: a model that was trained on outputs delivered to these accounts (L2) was exposed to the
teacher's outputs (L1). So evidence at L2 counts towards L1 too, and L2 is claimed only if L1 is (closed
testing). With several teachers, a claim needs an e-value of ``hard`` times the number of teachers that still
have an undecided claim: Holm's procedure on p = 1/E, applied level by level (a sequentially rejective graph:
Bretz, Maurer, Brannath and Posch 2009, Statistics in Medicine 28). The probability that any claim is false is
then at most 1/``hard``, over all teachers and both levels together.

No verdict states how likely it is that somebody did something: that needs a prior, which a trace does not
have.

All texts of a verdict are recorded in ``evidence.json`` and compared by `still trace verify`; changing one
makes older bundles differ.
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
    """A planned test's finding, or None if it could not be finished, with its pre-registered weight."""

    test: str
    level: str
    weight: float
    finding: Finding | None

    @property
    def e_value(self) -> float:
        """The finding's e-value; 1, which is no evidence, if it has none."""
        finding = self.finding
        return 1.0 if finding is None or finding.e_value is None else finding.e_value


@dataclass(frozen=True)
class ClaimEvidence:
    """The evidence for one claim about one teacher."""

    level: ClaimLevel
    e_value: float
    tests: tuple[str, ...]
    """The tests whose e-values were merged."""
    needed: float
    """The e-value that the claim required, or would have required."""
    claimed: bool


@dataclass(frozen=True)
class Verdict:
    """The conclusion about one teacher, in words that were fixed in advance."""

    outcome: Outcome
    level: ClaimLevel | None
    headline: str
    sentence: str


def only_about_texts(tests: Iterable[str]) -> bool:
    """Whether there are tests, and all are about an author's texts instead of a teacher's outputs."""
    about_texts = [test in DETECTORS and DETECTORS[test].about_texts for test in tests]
    return bool(about_texts) and all(about_texts)


def claim(level: ClaimLevel, tests: Sequence[str]) -> str:
    """The claim that evidence from ``tests`` supports."""
    return (CLAIMS_OF_TEXTS if only_about_texts(tests) else CLAIMS)[level]


def null(level: ClaimLevel, tests: Sequence[str]) -> str:
    """The null hypothesis of the claim, as a clause that follows "if it"."""
    return (NULLS_OF_TEXTS if only_about_texts(tests) else NULLS)[level]


def merge_evidence(
    tests: Sequence[WeightedFinding], level: ClaimLevel
) -> tuple[float, tuple[str, ...]] | None:
    """The merged e-value for a claim and its tests; None if no test is relevant to it."""
    relevant = [t for t in tests if t.weight > 0 and t.level in ("L2", level)]
    if not relevant:
        return None
    e_value = weighted_mean([t.e_value for t in relevant], [t.weight for t in relevant])
    return float(e_value), tuple(t.test for t in relevant)


def decide_claims(
    teachers: Mapping[str, Sequence[WeightedFinding]], hard: float
) -> dict[str, list[ClaimEvidence]]:
    """Decides the claims about all teachers together.

    Args:
        hard: the e-value of hard evidence.

    Returns:
        For each teacher the claims that any test is relevant to, from the lowest level up.
    """
    evidence: dict[str, dict[ClaimLevel, tuple[float, tuple[str, ...]]]] = {
        name: {level: merged for level in CLAIM_LEVELS if (merged := merge_evidence(tests, level))}
        for name, tests in teachers.items()
    }
    undecided = {name: list(levels) for name, levels in evidence.items() if levels}
    claimed: dict[tuple[str, ClaimLevel], float] = {}
    progress = True
    while progress:
        progress = False
        for name, levels in list(undecided.items()):
            needed = hard * len(undecided)
            if evidence[name][levels[0]][0] < needed:
                continue
            progress = True
            claimed[name, levels.pop(0)] = needed
            # A teacher whose claims are all made no longer counts, which lowers the threshold of the others.
            if not levels:
                del undecided[name]
    return {
        name: [
            ClaimEvidence(
                level=level,
                e_value=e_value,
                tests=tests,
                needed=claimed.get((name, level), hard * max(1, len(undecided))),
                claimed=(name, level) in claimed,
            )
            for level, (e_value, tests) in by_level.items()
        ]
        for name, by_level in evidence.items()
    }


def weights_claims(teachers: Mapping[str, Sequence[WeightedFinding]], hard: float) -> dict[str, str]:
    """The sentence about each teacher whose weights the suspect was made from, by name.

    A claim separate from L1 and L2. Its tests are merged by their mean, and with several teachers each needs
    that many times more.
    """
    merged = {}
    for name, tests in teachers.items():
        e_values = [t.e_value for t in tests if t.level == WEIGHTS]
        if e_values:
            merged[name] = float(weighted_mean(e_values, [1.0] * len(e_values)))
    needed = hard * len(merged)
    return {
        name: f"Apart from that, there is hard evidence that {CLAIM_OF_WEIGHTS} "
        f"(E = {format_scientific(e_value)}, and {format_scientific(needed)} is called hard). "
        "That shows nothing of what either was trained on."
        for name, e_value in merged.items()
        if e_value >= needed
    }


def verdict(
    claims: Sequence[ClaimEvidence],
    tests: Sequence[WeightedFinding],
    *,
    share: float,
    alpha: float,
    of_weights: str | None = None,
) -> Verdict:
    """The verdict on one teacher.

    Args:
        claims: its entry of :func:`decide_claims`.
        tests: their findings; the effects hold the bound and the power.
        share: the smallest share of the log that would matter.
        alpha: one minus the confidence level of the bound.
        of_weights: its entry of :func:`weights_claims`, which is appended to the sentence.
    """
    conclusion = _without_weights(claims, tests, share, alpha)
    if of_weights is None:
        return conclusion
    return replace(conclusion, sentence=f"{conclusion.sentence} {of_weights}")


def _without_weights(
    claims: Sequence[ClaimEvidence], tests: Sequence[WeightedFinding], share: float, alpha: float
) -> Verdict:
    """Hard evidence if any claim is made; else a bound if it is small enough; else inconclusive."""
    if made := [evidence for evidence in claims if evidence.claimed]:
        return _hard(made[-1])
    bound = _effect(tests, "f_high")
    if bound is not None and bound <= share:
        return Verdict(
            "bound",
            None,
            f"Bound: f below {bound:.2g}",
            f"With {format_percent(1 - alpha)} confidence less than {format_percent(bound)} of the log was "
            "used, if outputs that are used leave the trace that they left in the surrogate model. "
            "This is a bound and no more; it says nothing of outputs outside this log.",
        )
    return _inconclusive(claims, _effect(tests, "power"), share)


def _inconclusive(claims: Sequence[ClaimEvidence], power: float | None, share: float) -> Verdict:
    if not claims:
        strength = "No test could be run that bears on a claim."
    else:
        best = max(claims, key=lambda evidence: evidence.e_value)
        strength = (
            f"The evidence is E = {format_scientific(best.e_value)}, "
            f"and {format_scientific(best.needed)} is called hard."
        )
    if power is None:
        headline = "Inconclusive (power unknown)"
        chance = "How likely these tests were to find use at all is unknown without a surrogate model."
    else:
        headline = f"Inconclusive (power {format_percent(power)})"
        chance = (
            f"Had {format_percent(share)} of the log been used, these tests would have given hard evidence "
            f"with a probability of about {format_percent(power)}."
        )
    return Verdict("inconclusive", None, headline, f"{strength} {chance} Nothing is shown, either way.")


def _hard(evidence: ClaimEvidence) -> Verdict:
    level, tests, needed = evidence.level, evidence.tests, format_scientific(evidence.needed)
    return Verdict(
        "hard",
        level,
        f"Hard evidence at level {level}",
        f"The evidence is that {claim(level, tests)}. "
        f"If it {null(level, tests)}, and the assumptions hold, "
        f"evidence of E ≥ {needed} would come up in at most one of {needed} such "
        f"traces; here E = {format_scientific(evidence.e_value)}. "
        "The explanations that remain are listed with each test.",
    )


def _effect(tests: Sequence[WeightedFinding], name: str) -> float | None:
    """The smallest bound, or the largest power, that a test at L2 reports."""
    values = [
        value
        for t in tests
        if t.level == "L2" and t.finding is not None and (value := t.finding.effect.get(name)) is not None
    ]
    return (max if name == "power" else min)(values, default=None)
