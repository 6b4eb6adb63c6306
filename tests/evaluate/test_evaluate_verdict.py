"""The verdict on a student: every state, from per-document sums to the headline that each page shows."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from evaluate_sample import estimate, sample_report
from hypothesis import given, strategies as st
from scipy import stats

from stillhouse.evaluate import difference_table, judge_comparison
from stillhouse.evaluate.compare import comparison_entry
from stillhouse.evaluate.measures import Measures
from stillhouse.evaluate.report import render_page
from stillhouse.evaluate.schema import Report
from stillhouse.evaluate.verdict import HIGHER_IS_BETTER, MARGINS, state_of

DOCUMENTS = 40
LEVELS = {"kl": 0.6, "agreement": 0.7, "nll": 1.4}


def measures(shifts: dict[str, tuple[float, float]] | None = None, seed: int = 0) -> Measures:
    """A model's sums; ``shifts`` are means and spreads per token of what it has more than the student."""
    rng = np.random.default_rng(1)
    tokens_D = rng.integers(20, 200, DOCUMENTS)
    sums = {
        name: tokens_D * (level + rng.normal(0, 0.15, DOCUMENTS))  # hard and easy documents, alike for all
        for name, level in LEVELS.items()
    }
    rng = np.random.default_rng(seed)
    for name, (mean, spread) in (shifts or {}).items():
        noise_D = rng.normal(0, 1, DOCUMENTS)
        noise_D -= noise_D @ tokens_D / tokens_D.sum()  # so that the mean is exactly the one asked for
        sums[name] = sums[name] + tokens_D * (mean + spread * noise_D)
    names = tuple(map(str, range(DOCUMENTS)))
    return Measures(names, tokens_D, sums["nll"], sums["kl"], sums["agreement"])


def jackknife(a_D: np.ndarray, b_D: np.ndarray, tokens_D: np.ndarray) -> tuple[float, float]:
    """The 95% interval of a difference per token, from leaving out one document at a time."""
    keep = [np.arange(len(tokens_D)) != i for i in range(len(tokens_D))]
    left_out = np.array([(a_D[k] - b_D[k]).sum() / tokens_D[k].sum() for k in keep])
    n = len(left_out)
    error = np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    value = (a_D - b_D).sum() / tokens_D.sum()
    half = stats.t.ppf(0.975, n - 1) * error
    return float(value - half), float(value + half)


FAR = {"kl": (3.0, 0.3), "agreement": (-0.4, 0.05), "nll": (4.0, 0.3)}
"""A model far worse than the student in everything."""
NEAR = {"kl": (0.13, 0.06), "agreement": (-0.03, 0.02), "nll": (0.1, 0.06)}
"""A model somewhat worse than the student."""
TINY = {"kl": (0.0003, 0.0003), "agreement": (0.0, 0.001), "nll": (0.0002, 0.001)}
"""A model that differs from the student measurably and by nothing that matters."""
LIKE = {"kl": (0.01, 0.3), "agreement": (0.0, 0.1), "nll": (0.0, 0.3)}
"""A model that may be better or worse than the student."""

STATES = [
    # before training, control -> outcome, decided by, headline
    (FAR, NEAR, "better", "control", "The student is closer to its teacher than the control and than before"),
    (FAR, None, "improved", "before", "The student is closer to its teacher than before training"),
    (None, NEAR, "undecided", "control", "than the control; before training was not measured"),
    (FAR, LIKE, "undecided", "control", "but does not differ measurably from the control"),
    (FAR, TINY, "small", "control", "but its difference from the control is too small to matter"),
    (
        FAR,
        NEAR | {"kl": (0.02, 0.04)},
        "small",
        "control",
        "lead over the control may be too small to matter",
    ),
    (TINY, NEAR, "small", "before", "Training changed closeness to the teacher by too little to matter"),
    (LIKE, NEAR, "undecided", "before", "Training had no measurable effect on closeness to the teacher"),
    (
        LIKE | {"agreement": (0.043, 0.12)},
        NEAR,
        "worse",
        "before",
        "Training made the student worse: it agrees with the teacher's top token less often",
    ),
    (
        NEAR | {"agreement": (0.043, 0.12)},
        NEAR,
        "mixed",
        "before",
        "and gives the text a higher likelihood, but agrees with the teacher's top token less",
    ),
    (
        FAR,
        {"kl": (-0.1, 0.05), "agreement": (0.0, 0.1), "nll": (0.0, 0.3)},
        "worse",
        "control",
        "Worse than the control: the student is further from its teacher",
    ),
    (FAR, NEAR | {"nll": (-0.3, 0.1)}, "better", "control", "but gives the text a lower likelihood than the"),
    (NEAR | {"nll": (-0.3, 0.1)}, NEAR, "mixed", "before", "but gives the text a lower likelihood"),
]


def judge_states(before, control, *, api: bool = False) -> tuple[dict[str, Any], Any]:
    student = measures()
    comparison = {
        key: comparison_entry(student, measures(shifts, seed), 0.95)
        for seed, (key, shifts) in enumerate((("before", before), ("control", control)))
        if shifts is not None
    }
    if api:
        comparison = {k: entry | {"kl": None, "agreement": None} for k, entry in comparison.items()}
    return comparison, judge_comparison(comparison, [])


@pytest.mark.parametrize(("before", "control", "outcome", "against", "headline"), STATES)
def test_every_state_from_the_sums_of_documents(before, control, outcome, against, headline):
    comparison, verdict = judge_states(before, control)
    assert (verdict.outcome, verdict.against) == (outcome, against)
    assert headline in verdict.headline
    student = measures()
    for seed, (key, shifts) in enumerate((("before", before), ("control", control))):
        if shifts is None:
            continue
        other = measures(shifts, seed)
        for measure in ("kl", "agreement", "nll"):
            sums = [getattr(m, f"{measure[:5]}_D") for m in (student, other)]
            low, high = jackknife(*sums, student.tokens_D)
            found = comparison[key][measure]
            assert (found["low"], found["high"]) == pytest.approx(
                (low, high), rel=0.15, abs=0.1 * (high - low)
            )


def test_a_teacher_behind_an_api_is_judged_by_the_likelihood():
    _, improved = judge_states(FAR, None, api=True)
    assert (improved.outcome, improved.headline) == (
        "improved",
        "The student gives the text a higher likelihood than before training",
    )
    assert "teacher" not in improved.sentence
    _, worse = judge_states({"nll": (-0.3, 0.1)}, None, api=True)
    assert worse.headline == "Training made the student worse: it gives the text a lower likelihood"


def test_a_copy_of_the_teacher_wins_nothing():
    student = measures()
    # the copy is unchanged by training, and the control has moved away by rounding alone
    comparison = {
        "before": comparison_entry(student, student, 0.95),
        "control": comparison_entry(student, measures({"kl": (1e-6, 1e-7)}), 0.95),
    }
    verdict = judge_comparison(comparison, [])
    assert verdict.outcome == "small"
    assert "too little to matter" in verdict.headline
    assert "closer" not in verdict.headline


def test_reinforcement_is_judged_by_the_answers_too():
    """A reward moves the student away from its teacher; the headline has both."""
    before = {
        "kl": estimate(0.3, 0.1),
        "agreement": None,
        "nll": estimate(0.0, 0.1),
        "pass_at_1": estimate(0.2, 0.05),
    }
    verdict = judge_comparison({"before": before}, [])
    assert verdict.outcome == "mixed"
    assert verdict.headline == (
        "Training helped and hurt: the student answers correctly more often, but is further from its teacher"
    )
    assert verdict.since_before == (
        "Student − before training: KL +0.300 [+0.200, +0.400] nats per token; NLL +0.000 [−0.100, +0.100] "
        "nats per token; pass@1 +20.0 [+15.0, +25.0] points."
    )
    lost = judge_comparison(
        {"before": before | {"kl": estimate(-0.3, 0.1), "pass_at_1": estimate(-0.2, 0.05)}}, []
    )
    assert lost.outcome == "mixed"
    assert "answers correctly less often" in lost.headline


def test_without_an_interval_nothing_follows():
    single = estimate(-0.2, 0.1) | {"low": None, "high": None, "documents": 1}
    verdict = judge_comparison({key: {"kl": single, "nll": single} for key in ("before", "control")}, [])
    assert verdict.outcome == "undecided"
    assert "On 1 held-out document the" in verdict.sentence
    assert verdict.sentence.endswith("so this is not conclusive.")


def test_a_student_alone_is_reported_with_its_interval():
    verdict = judge_comparison({}, sample_report()["models"])
    assert verdict.outcome == "unmeasured"
    assert "divergence from the teacher is 0.723 nats per token (95% interval" in verdict.sentence
    assert verdict.since_before is None


def test_the_sentence_names_amount_interval_level_and_documents():
    report = sample_report()
    assert judge_comparison(report["comparison"], []).sentence == (
        "On 50 held-out documents the student's divergence from the teacher is 0.138 nats per token lower "
        "than that of the control (95% interval of the paired difference: 0.117 to 0.159 lower, clustered by "
        "document)."
    )


@pytest.mark.parametrize(
    ("value", "half", "words"),
    [
        (-0.254, 0.289, "is 0.254 nats per token lower than before training, and the 95% interval of the "
         "paired difference, 0.543 lower to 0.035 higher, includes zero"),
        (0.254, 0.1, "0.254 nats per token higher than before training (95% interval of the paired "
         "difference: 0.154 to 0.354 higher"),
    ],
)  # fmt: skip
def test_the_interval_has_the_direction_of_the_sentence(value, half, words):
    entry = {"kl": estimate(value, half), "nll": estimate(0.0, 0.5)}
    assert words in judge_comparison({"before": entry}, []).sentence


@pytest.mark.parametrize(
    ("value", "half", "state"),
    [
        (-0.1, 0.05, "better"),
        (-0.1, 0.0901, "slight"),
        (-0.005, 0.004, "negligible"),
        (0.005, 0.004, "negligible"),
        (0.0, 0.0, "negligible"),
        (0.05, 0.02, "worse"),
        (0.02, 0.0199, "worse"),
        (0.0, 0.2, "undecided"),
        (-0.1, 0.1, "undecided"),
    ],
)
@pytest.mark.parametrize("measure", MARGINS)
def test_the_state_of_a_difference(measure, value, half, state):
    sign = -1 if measure in HIGHER_IS_BETTER else 1
    assert state_of(measure, estimate(sign * value, half)) == state


VALUES = st.builds(estimate, st.floats(-0.2, 0.2), st.floats(0, 0.2))
ENTRIES = st.fixed_dictionaries(
    {
        "kl": st.none() | VALUES,
        "agreement": st.none() | VALUES,
        "nll": VALUES,
        "pass_at_1": st.none() | VALUES,
    }
)
LOST = {
    "kl": "further from its teacher",
    "agreement": "top token less often",
    "nll": "lower likelihood",
    "pass_at_1": "correctly less often",
}


@given(ENTRIES, ENTRIES)
def test_nothing_that_got_worse_is_praised(before, control):
    comparison = {"before": before, "control": control}
    verdict = judge_comparison(comparison, [])

    def loses(entry, measure):
        """By the ends of the interval alone: zero lies on the student's good side of all of it."""
        if (found := entry[measure]) is None:
            return False
        worst, best = (
            (found["high"], found["low"]) if measure in HIGHER_IS_BETTER else (-found["low"], -found["high"])
        )
        return worst < 0 and best < -MARGINS[measure]

    lost_since_before = [m for m in LOST if loses(before, m)]
    if lost_since_before:
        assert verdict.outcome in ("worse", "mixed")
        assert all(LOST[m] in verdict.headline for m in lost_since_before)
    lost_to_control = [m for m in ("kl", "agreement", "pass_at_1") if loses(control, m)]
    if lost_to_control:
        assert verdict.outcome in ("worse", "mixed")
        assert all(LOST[m] in verdict.headline for m in lost_to_control)
    if verdict.outcome == "better":
        primary = "kl" if before["kl"] else "nll"
        assert before[primary]["high"] < -0.01
        assert control["kl" if control["kl"] else "nll"]["high"] < -0.01


@pytest.mark.parametrize(
    ("before", "control", "outcome", "against", "headline"), [STATES[n] for n in (0, 1, 2, 4, 8, 9)]
)
def test_the_page_shows_the_change_since_before_training_and_praises_nothing_else(
    before, control, outcome, against, headline
):
    comparison, verdict = judge_states(before, control)
    report = sample_report() | {"comparison": comparison, "verdict": vars(verdict)}
    page = render_page(Report.model_validate(report).model_dump())
    box = page[page.index('<section class="verdict') :].partition("</section>")[0]
    assert box.startswith(f'<section class="verdict {outcome}"')
    text = " ".join(re.sub(r"<svg.*?</svg>|<[^>]+>", " ", box, flags=re.DOTALL).split())
    assert headline.replace("'", "&#39;") in text
    assert ("Student − before training" in text) == (before is not None)
    assert ("Student − control" in text) == (control is not None)
    assert "Too small to matter within ±0.01 ±1 ±0.01" in text
    assert ("There is no control" in text) == (control is None)


def test_only_a_better_student_has_the_students_colour():
    page = render_page(Report.model_validate(sample_report()).model_dump())
    rules = re.findall(r"\.verdict\.([^{]+){ border-color: var\(--(\w+)\)", page)
    assert rules == [("better ", "student"), ("worse, .verdict.mixed ", "control")]


def test_the_terminals_table_has_the_change_since_before_training():
    report = sample_report()
    title, columns, rows = difference_table(report | {"verdict": {"margins": MARGINS}})
    assert (title, columns) == ("", ["difference", "student − before", "student − control", "margin"])
    assert rows == [
        ["KL nats/token", "−3.091 [−3.191, −2.991]", "−0.138 [−0.159, −0.117]", "±0.01"],
        ["top-1 points", "+55.0 [+53.6, +56.4]", "+2.6 [+2.0, +3.2]", "±1"],
        ["NLL nats/token", "−5.370 [−5.520, −5.220]", "−0.081 [−0.099, −0.063]", "±0.01"],
    ]
