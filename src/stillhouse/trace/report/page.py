"""``report.html``: one offline page made from ``evidence.json``.

A reader without statistics finds the verdict, the ladder, what is not shown and a glossary; one with them the
nulls, the assumptions and the pictures. The page adds no number that is not in ``evidence.json``.
"""

from __future__ import annotations

from typing import Any

from stillhouse.pages.numbers import format_scientific
from stillhouse.pages.template import page_template
from stillhouse.trace.bundle.schema import Evidence, FindingRecord, PlaceboRecord, PlannedTestRecord
from stillhouse.trace.detectors.registry import DETECTORS
from stillhouse.trace.report.labels import EFFECTS, LEVEL_OF_TEXTS, LEVELS
from stillhouse.trace.verdict import NOT_SHOWN, claim, only_about_texts

HELD = {True: "holds", False: "does not hold", None: "cannot be told from the data"}
DRAWN_AS_GROWTH, DRAWN_AS_RANKS = "log10_e", "rank_counts"
"""Series that have a picture of their own."""
UNITS = {"outputs": "delivered outputs looked at", "pairs": "distinct pairs of tokens looked at"}
"""Series that say after how much the evidence had grown so far."""


def render_page(evidence: Evidence, plan: str) -> str:
    """The page as one HTML text; the same evidence gives the same page.

    Args:
        plan: the resolved plan, YAML.
    """
    filters = {
        "number": format_scientific,
        "words": _words,
        "readable": _readable,
        "rows": _effects,
        "largest": _largest,
    }
    return page_template(__package__, "evidence.html.j2", filters).render(
        evidence=evidence,
        plan=plan,
        plots=_draw(evidence),
        detectors=DETECTORS,
        level=_level,
        only_about_texts=only_about_texts,
        claim=claim,
        not_shown=NOT_SHOWN,
        held=HELD,
    )


def _level(part: Any) -> str:
    """What a test's level says, of texts or of outputs."""
    return LEVEL_OF_TEXTS if DETECTORS[part.test].about_texts else LEVELS[part.level]


def _draw(evidence: Evidence) -> dict[str, Any]:
    """The pictures that there is data for, by teacher, test and kind, as trusted markup."""
    from markupsafe import Markup

    from stillhouse.trace.report import plots as drawings

    pictures: dict[str, str] = {}
    for number_, teacher in enumerate(evidence.teachers):
        if teacher.rungs:
            rungs = [rung.model_dump() for rung in teacher.rungs]
            pictures[f"{teacher.name}/ladder"] = drawings.ladder(rungs, name=f"ladder-{number_}")
        for part in teacher.tests:
            for kind, picture in _of_test(part, evidence.hard, f"{part.test}-{number_}").items():
                pictures[f"{teacher.name}/{part.test}/{kind}"] = picture
    return {place: Markup(svg) for place, svg in pictures.items()}


def _of_test(part: PlannedTestRecord, hard: float, name: str) -> dict[str, str]:
    from stillhouse.trace.report import plots as drawings

    finding, pictures = part.finding, {}
    if finding is None or finding.reason is not None:
        return {}
    if growth := finding.series.get(DRAWN_AS_GROWTH):
        unit = next(unit for unit in UNITS if unit in finding.series)
        pictures["growth"] = drawings.growth(
            growth, finding.series[unit], hard, unit=UNITS[unit], name=f"growth-{name}"
        )
    if counts := finding.series.get(DRAWN_AS_RANKS):
        pictures["ranks"] = drawings.ranks(counts, name=f"ranks-{name}")
    others = [p.e_value for p in part.placebos if p.e_value is not None]
    if others:
        pictures["placebos"] = drawings.placebos(finding.e_value, others, hard, name=f"placebos-{name}")
    return pictures


def _effects(finding: FindingRecord) -> list[tuple[str, str, str]]:
    """Effects as texts: what it is, value, interval; without the statistic, which stands above."""
    effect, found = finding.effect, []
    for name, value in effect.items():
        of_another = name.endswith(("_low", "_high")) and name.rpartition("_")[0] in effect
        ends = (effect.get(f"{name}_low"), effect.get(f"{name}_high"))
        if of_another or (value is None and ends == (None, None)) or value == finding.value:
            continue
        found.append((EFFECTS.get(name, _readable(name)), format_scientific(value), _interval(*ends)))
    return found


def _interval(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"{format_scientific(low)} to {format_scientific(high)}"
    if low is not None:
        return f"at least {format_scientific(low)}"
    return "" if high is None else f"at most {format_scientific(high)}"


def _largest(placebos: list[PlaceboRecord]) -> str:
    return format_scientific(max((p.e_value for p in placebos if p.e_value is not None), default=None))


def _readable(key: str) -> str:
    return key.replace("_", " ")


def _words(value: Any) -> str:
    """A parameter as text."""
    if value is None or value == [] or value == {}:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return format_scientific(value)
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    if isinstance(value, dict):
        return "; ".join(f"{_readable(str(key))} {_words(inner)}" for key, inner in value.items())
    return str(value)
