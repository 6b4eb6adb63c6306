"""The pictures of the evidence page. They draw what ``evidence.json`` holds, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from stillhouse.pages.numbers import format_scientific
from stillhouse.pages.svg import COLOURS, figure_axes, name_rows, svg_element

REAL, PLACEBO, THRESHOLD = COLOURS["student"], COLOURS["before"], COLOURS["control"]


def ladder(rungs: Sequence[Mapping[str, Any]], *, name: str) -> str:
    """The e-value of each claim beside the one that it takes, on a logarithmic scale."""
    described = []
    with figure_axes(0.75 + 0.42 * len(rungs)) as (drawing, axes):
        for y, rung in enumerate(rungs):
            value = _log(rung["e_value"])
            axes.plot([0, value], [y, y], color=REAL, lw=6, solid_capstyle="butt")
            axes.plot([math.log10(rung["needed"])] * 2, [y - 0.3, y + 0.3], color=THRESHOLD, lw=2)
            reached, needed = format_scientific(rung["e_value"]), format_scientific(rung["needed"])
            axes.annotate(
                f"E = {reached}", (max(value, 0), y), (5, 0),
                textcoords="offset points", va="center", fontsize=8.5,
            )  # fmt: skip
            described.append(f"{rung['level']} E {reached} of {needed}")
        name_rows(axes, [rung["level"] for rung in rungs])
        _powers_of_ten(
            axes, [_log(rung["e_value"]) for rung in rungs], [math.log10(r["needed"]) for r in rungs]
        )
        low, high = axes.get_xlim()
        axes.set_xlim(low, high + 0.28 * (high - low))
        axes.set_xlabel("evidence E; the upright mark is what is called hard")
        return svg_element(drawing, name, f"Evidence by level: {', '.join(described)}.")


def growth(
    log10_e: Sequence[float | None], units: Sequence[float | None], hard: float, *, unit: str, name: str
) -> str:
    """How the evidence grew as more was looked at: log10 E against how much."""
    points = [(n, e) for n, e in zip(units, log10_e, strict=True) if n is not None and e is not None]
    with figure_axes(2.2) as (drawing, axes):
        axes.axhline(math.log10(hard), color=THRESHOLD, lw=1.4)
        axes.axhline(0, color=COLOURS["soft"], lw=0.8)
        axes.plot([n for n, _ in points], [e for _, e in points], color=REAL, lw=1.8)
        axes.set_xlabel(unit)
        axes.set_ylabel("evidence E")
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_scientific(10.0**value)))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        last = format_scientific(10.0 ** min(points[-1][1], 300)) if points else "unknown"
        return svg_element(drawing, name, f"Evidence against {unit}; at the end E = {last}.")


def ranks(counts: Sequence[float | None], *, name: str) -> str:
    """How often the delivered output ranked where among its resamples; level without training."""
    shown = [count or 0.0 for count in counts]
    expected = sum(shown) / max(1, len(shown))
    with figure_axes(2.2) as (drawing, axes):
        axes.bar(range(1, len(shown) + 1), shown, color=REAL, width=0.75)
        axes.axhline(expected, color=THRESHOLD, lw=1.4)
        axes.set_xlabel("rank of the delivered output, the most familiar at the right")
        axes.set_ylabel("outputs")
        axes.grid(axis="x", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        told = ", ".join(f"{count:,.0f}" for count in shown)
        return svg_element(drawing, name, f"Outputs by rank: {told}; {expected:,.0f} each without training.")


def placebos(real: float | None, others: Sequence[float], hard: float, *, name: str) -> str:
    """The evidence beside that of the same test where there is nothing to find, on a logarithmic scale."""
    logs = sorted(_log(e) for e in others)
    with figure_axes(1.35) as (drawing, axes):
        heights = [0.12 * (number % 5 - 2) for number in range(len(logs))]
        axes.axvline(math.log10(hard), color=THRESHOLD, lw=1.4)
        axes.plot(logs, heights, "o", ms=4.5, color=PLACEBO, alpha=0.75)
        shown = [] if real is None else [_log(real)]
        axes.plot(shown, [1.0] * len(shown), "D", ms=7, color=REAL)
        axes.set_yticks([0, 1], ["placebos", "the test"], color=COLOURS["ink"], fontsize=9)
        axes.set_ylim(-0.6, 1.5)
        axes.grid(axis="y", visible=False)
        _powers_of_ten(axes, [*logs, *shown], [math.log10(hard)])
        axes.set_xlabel("evidence E; the line is what is called hard")
        top = format_scientific(max(others, default=None))
        return svg_element(
            drawing,
            name,
            f"{len(logs)} placebos, the largest E = {top}; the test itself E = {format_scientific(real)}.",
        )


def _log(e_value: float) -> float:
    """log10, with nothing below 10^-6: evidence that small says no less than smaller."""
    return math.log10(max(e_value, 1e-6))


def _powers_of_ten(axes: Axes, values: Sequence[float], marks: Sequence[float]) -> None:
    everything = [0.0, *values, *marks]
    low, high = min(everything), max(everything)
    margin = 0.06 * (high - low) + 0.1
    axes.set_xlim(low - margin, high + margin)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_scientific(10.0**value)))
