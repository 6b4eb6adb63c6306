"""Plots of the evidence page. They show only numbers of ``evidence.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from stillhouse.pages.numbers import format_scientific
from stillhouse.pages.svg import COLOURS, figure_axes, name_rows, svg_element

REAL, PLACEBO, THRESHOLD = COLOURS["student"], COLOURS["before"], COLOURS["control"]


def ladder(claims: Sequence[Mapping[str, Any]], *, name: str) -> str:
    """The e-value of each claim beside its threshold, on a logarithmic scale."""
    described = []
    with figure_axes(0.75 + 0.42 * len(claims)) as (figure, axes):
        for y, claim in enumerate(claims):
            value = _log10(claim["e_value"])
            axes.plot([0, value], [y, y], color=REAL, lw=6, solid_capstyle="butt")
            axes.plot([math.log10(claim["needed"])] * 2, [y - 0.3, y + 0.3], color=THRESHOLD, lw=2)
            reached, needed = format_scientific(claim["e_value"]), format_scientific(claim["needed"])
            axes.annotate(
                f"E = {reached}",
                (max(value, 0), y),
                (5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
            )
            described.append(f"{claim['level']} E {reached} of {needed}")
        name_rows(axes, [claim["level"] for claim in claims])
        _powers_of_ten(
            axes, [_log10(claim["e_value"]) for claim in claims], [math.log10(c["needed"]) for c in claims]
        )
        low, high = axes.get_xlim()
        axes.set_xlim(low, high + 0.28 * (high - low))
        axes.set_xlabel("evidence E; the vertical mark is the threshold of hard evidence")
        return svg_element(figure, name, f"Evidence by level: {', '.join(described)}.")


def growth(
    log10_e: Sequence[float | None], units: Sequence[float | None], hard: float, *, unit: str, name: str
) -> str:
    """The growth of the evidence: log10 E against the amount of data."""
    points = [(n, e) for n, e in zip(units, log10_e, strict=True) if n is not None and e is not None]
    with figure_axes(2.2) as (figure, axes):
        axes.axhline(math.log10(hard), color=THRESHOLD, lw=1.4)
        axes.axhline(0, color=COLOURS["soft"], lw=0.8)
        axes.plot([n for n, _ in points], [e for _, e in points], color=REAL, lw=1.8)
        axes.set_xlabel(unit)
        axes.set_ylabel("evidence E")
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_scientific(10.0**value)))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        last = format_scientific(10.0 ** min(points[-1][1], 300)) if points else "unknown"
        return svg_element(figure, name, f"Evidence against {unit}; at the end E = {last}.")


def ranks(counts: Sequence[float | None], *, name: str) -> str:
    """Histogram of the delivered output's rank among its resamples; flat without training."""
    shown = [count or 0.0 for count in counts]
    expected = sum(shown) / max(1, len(shown))
    with figure_axes(2.2) as (figure, axes):
        axes.bar(range(1, len(shown) + 1), shown, color=REAL, width=0.75)
        axes.axhline(expected, color=THRESHOLD, lw=1.4)
        axes.set_xlabel("rank of the delivered output, the most familiar at the right")
        axes.set_ylabel("outputs")
        axes.grid(axis="x", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        heights = ", ".join(f"{count:,.0f}" for count in shown)
        return svg_element(
            figure, name, f"Outputs by rank: {heights}; {expected:,.0f} each expected without training."
        )


def placebos(real: float | None, placebo_es: Sequence[float], hard: float, *, name: str) -> str:
    """The test's evidence beside that of its placebos, on a logarithmic scale."""
    logs = sorted(_log10(e) for e in placebo_es)
    with figure_axes(1.35) as (figure, axes):
        heights = [0.12 * (index % 5 - 2) for index in range(len(logs))]  # spreads equal values apart
        axes.axvline(math.log10(hard), color=THRESHOLD, lw=1.4)
        axes.plot(logs, heights, "o", ms=4.5, color=PLACEBO, alpha=0.75)
        shown = [] if real is None else [_log10(real)]
        axes.plot(shown, [1.0] * len(shown), "D", ms=7, color=REAL)
        axes.set_yticks([0, 1], ["placebos", "the test"], color=COLOURS["ink"], fontsize=9)
        axes.set_ylim(-0.6, 1.5)
        axes.grid(axis="y", visible=False)
        _powers_of_ten(axes, [*logs, *shown], [math.log10(hard)])
        axes.set_xlabel("evidence E; the line is the threshold of hard evidence")
        largest = format_scientific(max(placebo_es, default=None))
        described = f"{len(logs)} placebos, the largest E = {largest}; the test itself"
        return svg_element(figure, name, f"{described} E = {format_scientific(real)}.")


def _log10(e_value: float) -> float:
    """log10, but at least −6: smaller evidence says the same."""
    return math.log10(max(e_value, 1e-6))


def _powers_of_ten(axes: Axes, values: Sequence[float], thresholds: Sequence[float]) -> None:
    """Scales the x axis to all values and thresholds, with ticks at powers of ten."""
    shown = [0.0, *values, *thresholds]
    low, high = min(shown), max(shown)
    margin = 0.06 * (high - low) + 0.1
    axes.set_xlim(low - margin, high + margin)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_scientific(10.0**value)))
