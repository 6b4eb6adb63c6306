"""``report.html``: one offline page made from ``evidence.json``.

Readers without statistics find the verdict, the ladder, the limits and a glossary; statisticians find the
null hypotheses, the assumptions and the plots. The page adds no number that is not in ``evidence.json``.
"""

from __future__ import annotations

from typing import Any

from stillhouse.pages.numbers import format_scientific
from stillhouse.pages.template import page_template
from stillhouse.trace.bundle.schema import Evidence, FindingRecord, PlaceboRecord, PlannedTestRecord
from stillhouse.trace.detectors.registry import DETECTORS
from stillhouse.trace.report.labels import EFFECTS, LEVEL_OF_TEXTS, LEVELS
from stillhouse.trace.verdict import NOT_SHOWN, claim, only_about_texts

HELD = {True: "holds", False: "does not hold", None: "unknown: the data cannot show it"}
GROWTH_SERIES, RANK_SERIES = "log10_e", "rank_counts"
"""Series of a finding that have a plot."""
UNITS = {"outputs": "delivered outputs tested", "pairs": "distinct pairs of tokens tested"}
"""Series with the amount of data at each point of the growth plot, and their axis labels."""


def render_page(evidence: Evidence, plan: str) -> str:
    """The page as one HTML text; the same evidence gives the same page.

    Args:
        plan: the resolved plan, YAML.
    """
    filters = {
        "number": format_scientific,
        "value_text": _value_text,
        "key_text": _key_text,
        "effect_rows": _effect_rows,
        "largest": _largest,
    }
    return page_template(__package__, "evidence.html.j2", filters).render(
        evidence=evidence,
        plan=plan,
        plots=_plots(evidence),
        detectors=DETECTORS,
        level=_level,
        only_about_texts=only_about_texts,
        claim=claim,
        not_shown=NOT_SHOWN,
        held=HELD,
    )


def _level(test: Any) -> str:
    """What a test's level means, for texts or for outputs."""
    return LEVEL_OF_TEXTS if DETECTORS[test.test].about_texts else LEVELS[test.level]


def _plots(evidence: Evidence) -> dict[str, Any]:
    """All plots for which there is data, by teacher, test and kind, as trusted markup."""
    from markupsafe import Markup

    from stillhouse.trace.report import plots

    svgs: dict[str, str] = {}
    for number, teacher in enumerate(evidence.teachers):
        if teacher.rungs:
            claims = [rung.model_dump() for rung in teacher.rungs]
            svgs[f"{teacher.name}/ladder"] = plots.ladder(claims, name=f"ladder-{number}")
        for test in teacher.tests:
            for kind, svg in _plots_of_test(test, evidence.hard, f"{test.test}-{number}").items():
                svgs[f"{teacher.name}/{test.test}/{kind}"] = svg
    return {key: Markup(svg) for key, svg in svgs.items()}


def _plots_of_test(test: PlannedTestRecord, hard: float, name: str) -> dict[str, str]:
    from stillhouse.trace.report import plots

    finding, svgs = test.finding, {}
    if finding is None or finding.reason is not None:
        return {}
    if growth := finding.series.get(GROWTH_SERIES):
        unit = next(unit for unit in UNITS if unit in finding.series)
        svgs["growth"] = plots.growth(
            growth, finding.series[unit], hard, unit=UNITS[unit], name=f"growth-{name}"
        )
    if counts := finding.series.get(RANK_SERIES):
        svgs["ranks"] = plots.ranks(counts, name=f"ranks-{name}")
    placebo_es = [placebo.e_value for placebo in test.placebos if placebo.e_value is not None]
    if placebo_es:
        svgs["placebos"] = plots.placebos(finding.e_value, placebo_es, hard, name=f"placebos-{name}")
    return svgs


def _effect_rows(finding: FindingRecord) -> list[tuple[str, str, str]]:
    """Effects as (name, value, interval); omits the statistic, which has a row of its own."""
    effect, rows = finding.effect, []
    for name, value in effect.items():
        is_interval_end = name.endswith(("_low", "_high")) and name.rpartition("_")[0] in effect
        ends = (effect.get(f"{name}_low"), effect.get(f"{name}_high"))
        if is_interval_end or (value is None and ends == (None, None)) or value == finding.value:
            continue
        rows.append((EFFECTS.get(name, _key_text(name)), format_scientific(value), _interval(*ends)))
    return rows


def _interval(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"{format_scientific(low)} to {format_scientific(high)}"
    if low is not None:
        return f"at least {format_scientific(low)}"
    return "" if high is None else f"at most {format_scientific(high)}"


def _largest(placebos: list[PlaceboRecord]) -> str:
    return format_scientific(max((p.e_value for p in placebos if p.e_value is not None), default=None))


def _key_text(key: str) -> str:
    return key.replace("_", " ")


def _value_text(value: Any) -> str:
    """A parameter as text."""
    if value is None or value == [] or value == {}:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return format_scientific(value)
    if isinstance(value, list):
        return ", ".join(map(_value_text, value))
    if isinstance(value, dict):
        return "; ".join(f"{_key_text(str(key))} {_value_text(inner)}" for key, inner in value.items())
    return str(value)
