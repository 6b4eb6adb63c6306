"""Results of a study: means over seeds with intervals, costs, and a verdict on each claim.

The seed is the repeated unit, so intervals are Student's t over the seeds' means, with one degree of
freedom less than there are seeds; a difference between two arms is first taken within each seed. With three
seeds the intervals are wide, as they should be. Each seed has its own questions, so the intervals include
their variance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from stillhouse.errors import RecipeError
from stillhouse.evaluate.verdict import MARGINS
from stillhouse.pages.numbers import format_number
from stillhouse.pages.template import page_template
from stillhouse.recipe.study import REPORT_MEASURES, TEST_MEASURES, Claim, Study
from stillhouse.stats import interval

MEASURE_NAMES = {
    "pass_at_1": "pass@1",
    "consensus_at_k": "majority vote",
    "thought": "share that thinks",
    "kl": "KL to the teacher",
    "agreement": "top-1 agreement",
    "nll": "NLL of the text",
}
LOWER_IS_BETTER = ("kl", "nll")
UNITS = {
    "tokens": (1, "tokens", "+.1f"),
    "kl": (1, "nats per token", "+.3f"),
    "nll": (1, "nats per token", "+.3f"),
}
"""Factor, unit and format of a difference; the other measures are shares, shown in points."""

Measured = Mapping[int, Mapping[str, Any]]
"""By seed and arm: ``tests`` (measures by test), ``report`` (measures of the run's own report), ``flops``,
``cpu_seconds``, ``curves``, ``examples``."""


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
                test: {m: over_seeds([each["tests"][test][m] for each in by_seed]) for m in TEST_MEASURES}
                for test in study.tests
            },
            "report": {
                measure: over_seeds([each["report"][measure] for each in by_seed])
                for measure in REPORT_MEASURES
                if all(measure in each["report"] for each in by_seed)
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
    """The difference that a claim is about, and its verdict.

    A claim ``appeared`` if the interval of the advantage lies above the margin (and the arm was as much
    cheaper as claimed); it is ``contradicted`` if the interval lies below the margin, or the arm was not
    cheaper. A claim without a margin is ``too small to matter`` if the interval lies within the practical
    margin of reports (:data:`.verdict.MARGINS`); else it is ``not shown``.

    Raises:
        RecipeError: an arm's report does not have the measure.
    """
    # within each seed, whose arms answer the same questions: their difficulty cancels
    differences = [
        _value(arms[claim.arm], claim, claim.arm) - _value(arms[claim.over], claim, claim.over)
        for arms in measured.values()
    ]
    estimate = interval(differences, [1.0] * len(differences), confidence).to_dict()
    times = fmean([arms[claim.over]["flops"] / arms[claim.arm]["flops"] for arms in measured.values()])
    low, high = estimate["low"], estimate["high"]
    if low is not None and claim.measure in LOWER_IS_BETTER:
        low, high = -high, -low  # as an advantage
    cheap = claim.cheaper is None or times >= claim.cheaper
    small = MARGINS.get(claim.measure) if claim.margin == 0 else None
    if low is None:
        verdict = "one seed: no verdict"
    elif small is not None and -small <= low and high <= small:
        verdict = "too small to matter"
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


def _value(arm: Mapping[str, Any], claim: Claim, name: str) -> float:
    """The measure of a claim for one arm and seed."""
    if claim.measure in REPORT_MEASURES:
        if claim.measure not in arm["report"]:
            raise RecipeError(
                f"the report of arm {name} has no {claim.measure}, which needs the teacher's weights",
                hint="Claim `nll`, or a measure of a test.",
            )
        return arm["report"][claim.measure]
    test = claim.test or next(iter(arm["tests"]))
    return arm["tests"][test][claim.measure]


def study_table(results: Mapping[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """Title, columns and rows of the table that the command prints, with intervals: per cent, or nats."""
    k, tests, arms = results["samples"], results["tests"], results["arms"]
    level = f"{results['confidence']:.0%}"
    columns: dict[str, list[str]] = {"arm": list(arms)}
    for test in tests:
        for name, measure in (("pass@1", "pass_at_1"), (f"cons@{k}", "consensus_at_k")):
            columns[f"{name} {test}"] = [percent(arm["tests"][test][measure]) for arm in arms.values()]
    if tests:
        shares = [arm["tests"][tests[0]]["thought"]["value"] for arm in arms.values()]
        columns["thinks"] = [f"{share:.0%}" for share in shares]
    else:
        columns |= report_columns(results)
    columns["GFLOP"] = [f"{arm['flops'] / 1e9:,.0f}" for arm in arms.values()]
    columns["CPU s"] = [f"{arm['cpu_seconds']:,.0f}" for arm in arms.values()]
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    seeds = len(results["seeds"])
    title = f"{results['name']}: {seeds} seed{'s' if seeds != 1 else ''}; [{level} intervals over seeds]"
    return title, list(columns), rows


def report_columns(results: Mapping[str, Any]) -> dict[str, list[str]]:
    """The measures of the arms' reports that all arms have, by the title of their column."""
    arms = list(results["arms"].values())
    titles = {"kl": "KL nats/token", "agreement": "top-1 %", "nll": "NLL nats/token"}
    columns = {}
    for measure, title in titles.items():
        estimates = [arm["report"].get(measure) for arm in arms]
        if all(estimates):
            columns[title] = (
                [percent(estimate) for estimate in estimates]
                if measure == "agreement"
                else [nats(estimate) for estimate in estimates]
            )
    return columns


def nats(estimate: Mapping[str, Any]) -> str:
    """``0.712 [0.690–0.734]``."""
    if estimate["low"] is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}–{estimate['high']:.3f}]"


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
    estimate = claim["difference"]
    scale, unit, form = UNITS.get(claim["measure"], (100, "points", "+.1f"))

    def signed(value: float, form: str = form) -> str:
        return format(scale * value, form).replace("-", "−")

    name = MEASURE_NAMES.get(claim["measure"], claim["measure"])
    on = f" on {claim['test']}" if claim["test"] is not None else ""
    text = f"{claim['arm']} over {claim['over']}, {name}{on}: {signed(estimate['value'])} {unit}"
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
    return page_template(__package__, "study.html.j2", filters).render(
        results=results,
        plots=plots,
        reported=report_columns(results),
        curved=any(name.startswith("curve_") for name in plots),
    )
