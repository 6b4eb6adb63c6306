"""Results of a study: means over seeds with intervals, costs, and a verdict on each claim.

The seed is the repeated unit, so intervals are Student's t over the seeds' means, with one degree of
freedom less than there are seeds; a difference between two arms is first taken within each seed. With three
seeds the intervals are wide, as they should be. Each seed has its own questions, so the intervals include
their variance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, get_args

from stillhouse.pages.numbers import format_number
from stillhouse.pages.template import page_template
from stillhouse.recipe.study import Claim, Measure, Study
from stillhouse.stats import interval

MEASURE_NAMES = {"pass_at_1": "pass@1", "consensus_at_k": "majority vote", "thought": "share that thinks"}
MEASURES: tuple[Measure, ...] = get_args(Measure)

Measured = Mapping[int, Mapping[str, Any]]
"""By seed and arm: ``tests`` (measures by test), ``flops``, ``cpu_seconds``, ``curves``, ``examples``."""


def study_results(study: Study, measured: Measured) -> dict[str, Any]:
    """The results as plain values: ``arms`` (in order, with intervals) and ``claims`` (with verdicts)."""
    confidence = study.answers.confidence

    def over_seeds(values: Sequence[float]) -> dict[str, Any]:
        return interval(values, [1.0] * len(values), confidence).to_dict()

    arms = {}
    for name, arm in study.arms.items():
        by_seed = [arms_of_seed[name] for arms_of_seed in measured.values()]
        arms[name] = {
            "label": arm.label,
            "parameters": by_seed[0]["parameters"],
            "tests": {
                test: {m: over_seeds([each["tests"][test][m] for each in by_seed]) for m in MEASURES}
                for test in study.tests
            },
            **{
                key: fmean([each[key] for each in by_seed])
                for key in ("flops", "cpu_seconds", "flops_with_those_before")
            },
            "curves": [each["curves"] for each in by_seed],
            "examples": by_seed[0]["examples"],
        }
    return {
        "name": study.study,
        "seeds": list(measured),
        "samples": study.answers.samples,
        "confidence": confidence,
        "tests": list(study.tests),
        "arms": arms,
        "claims": [judge_claim(claim, measured, confidence) for claim in study.claims],
    }


def judge_claim(claim: Claim, measured: Measured, confidence: float) -> dict[str, Any]:
    """The difference that a claim is about, and its verdict: ``appeared``, ``contradicted`` or ``not shown``.

    A claim appeared if the interval of the difference lies above the margin (and the arm was as much cheaper
    as claimed); it is contradicted if the interval lies below the margin, or the arm was not cheaper.
    """
    # within each seed, whose arms answer the same questions: their difficulty cancels
    differences = [
        arms[claim.arm]["tests"][claim.test][claim.measure]
        - arms[claim.over]["tests"][claim.test][claim.measure]
        for arms in measured.values()
    ]
    estimate = interval(differences, [1.0] * len(differences), confidence).to_dict()
    times = fmean([arms[claim.over]["flops"] / arms[claim.arm]["flops"] for arms in measured.values()])
    low, high = estimate["low"], estimate["high"]
    cheap = claim.cheaper is None or times >= claim.cheaper
    if low is None:
        verdict = "one seed: no verdict"
    elif low > claim.margin and cheap:
        verdict = "appeared"
    elif high < claim.margin or (low > claim.margin and not cheap):
        verdict = "contradicted"
    else:
        verdict = "not shown"
    return {
        "says": claim.says,
        "arm": claim.arm,
        "over": claim.over,
        "test": claim.test,
        "measure": claim.measure,
        "margin": claim.margin,
        "cheaper": claim.cheaper,
        "difference": estimate,
        "times_cheaper": times,
        "verdict": verdict,
    }


def study_table(results: Mapping[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """Title, columns and rows of the table that the command prints: per cent with intervals."""
    k, tests = results["samples"], results["tests"]
    level = f"{results['confidence']:.0%}"
    columns = ["arm", *[f"{name} {test}" for test in tests for name in ("pass@1", f"cons@{k}")]]
    columns += ["thinks", "GFLOP", "CPU s"]
    rows = []
    for name, arm in results["arms"].items():
        cells = [name]
        for test in tests:
            cells += [percent(arm["tests"][test][m]) for m in ("pass_at_1", "consensus_at_k")]
        thought = arm["tests"][tests[0]]["thought"]["value"]
        cells += [f"{thought:.0%}", f"{arm['flops'] / 1e9:,.0f}", f"{arm['cpu_seconds']:,.0f}"]
        rows.append(cells)
    seeds = len(results["seeds"])
    return f"{results['name']}: {seeds} seeds; [{level} intervals over seeds]", columns, rows


def percent(estimate: Mapping[str, Any]) -> str:
    """``62 [55–70]``."""
    value = f"{100 * estimate['value']:.0f}"
    if estimate["low"] is None:
        return value
    # an interval of Student's t can exceed the range of a share
    low, high = max(0.0, estimate["low"]), min(1.0, estimate["high"])
    return f"{value} [{100 * low:.0f}–{100 * high:.0f}]"


def difference_in_words(claim: Mapping[str, Any]) -> str:
    """``r1 over base, pass@1 on learned: +12 points [+3 to +21]; 4.1 times fewer operations``."""
    estimate, is_share = claim["difference"], claim["measure"] != "tokens"
    unit = "points" if is_share else "tokens"

    def signed(value: float, form: str = "+.1f") -> str:
        return format(100 * value if is_share else value, form).replace("-", "−")

    name = MEASURE_NAMES.get(claim["measure"], claim["measure"])
    text = f"{claim['arm']} over {claim['over']}, {name} on {claim['test']}: "
    text += f"{signed(estimate['value'])} {unit}"
    if estimate["low"] is not None:
        text += f" [{signed(estimate['low'])} to {signed(estimate['high'])}]"
    if claim["margin"]:
        text += f" (margin {signed(claim['margin'], '+g')})"
    if claim["cheaper"] is not None:
        text += f"; {format_number(claim['times_cheaper'])} times fewer operations"
    return text


def study_page(results: Mapping[str, Any]) -> str:
    """The results as one HTML page that has no script and loads nothing."""
    from markupsafe import Markup

    from stillhouse.evaluate import study_plots

    plots = {name: Markup(svg) for name, svg in study_plots.draw(results).items()}
    filters = {"percent": percent, "words": difference_in_words, "number": format_number}
    return page_template(__package__, "study.html.j2", filters).render(results=results, plots=plots)
