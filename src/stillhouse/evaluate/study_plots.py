"""Plots of a study: scores of the arms, scores over cost, and curves of reinforcement learning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stillhouse.pages.svg import COLOURS, figure_axes, name_rows, running_mean, svg_element

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKS = ("student", "before")
"""Colours of the tests, in their order (those of the student and of the student before training)."""
NAME_SIZE = 7.0
"""Font size of a point's name, in points."""
LABEL_OFFSETS = ((0, 1), (0, -1), (1, 0), (-1, 0), (0, 3), (0, -3), (1, 2), (-1, -2), (1, -2), (-1, 2))
"""Where a name may be placed, in its own widths and heights from the point; earlier ones are preferred."""
CURVES = {"reward": "mean reward of a round", "length": "tokens of an answer"}


def draw(results: Mapping[str, Any]) -> dict[str, str]:
    """All plots by name: ``scores``, ``cost``, and ``curve_<what>_<arm>`` for arms with rounds."""
    pictures = {"scores": scores(results), "cost": cost(results)} if results["tests"] else {}
    for name, arm in results["arms"].items():
        for what, label in CURVES.items():
            if any(what in curves for curves in arm["curves"]):
                pictures[f"curve_{what}_{name}"] = curve(arm, name, what, label)
    return pictures


def scores(results: Mapping[str, Any]) -> str:
    """pass@1 of every arm on every test, with its interval over seeds."""
    arms, described = results["arms"], []
    with figure_axes(0.8 + 0.34 * len(arms)) as (drawing, axes):
        for number, test in enumerate(results["tests"]):
            colour = COLOURS[MARKS[number % len(MARKS)]]
            for row, (name, arm) in enumerate(arms.items()):
                estimate, y = arm["tests"][test]["pass_at_1"], row + 0.22 * (number - 0.5)
                if estimate["low"] is not None:
                    low, high = max(0.0, estimate["low"]), min(1.0, estimate["high"])
                    axes.plot([100 * low, 100 * high], [y, y], color=colour, lw=2.2)
                label = test if row == 0 else None
                axes.plot([100 * estimate["value"]], [y], "o", ms=4.5, color=colour, label=label)
                described.append(f"{name} on {test} {100 * estimate['value']:.0f}")
        name_rows(axes, list(arms))
        axes.set_xlim(0, 100)
        axes.set_xlabel("pass@1, %")
        axes.legend(
            frameon=False, fontsize=8.5, loc="lower left", bbox_to_anchor=(0, 1), ncols=4,
            labelcolor=COLOURS["soft"],
        )  # fmt: skip
        return svg_element(drawing, "study-scores", f"pass@1 in per cent: {', '.join(described)}.")


def cost(results: Mapping[str, Any]) -> str:
    """pass@1 on the first test over the arm's own operations."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    test, arms = results["tests"][0], results["arms"]
    points = [(a["flops"] / 1e9, 100 * a["tests"][test]["pass_at_1"]["value"]) for a in arms.values()]
    with figure_axes(4.6) as (drawing, axes):
        axes.set_xscale("log")  # arms differ by orders of magnitude in cost
        axes.plot(*zip(*points, strict=True), "o", ms=4.5, color=COLOURS["student"])
        axes.margins(0.14, 0.1)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("own operations, GFLOP (logarithmic)")
        axes.set_ylabel(f"pass@1 {test}, %")
        drawing.draw_without_rendering()  # computes the layout, which places the names
        _name_points(axes, list(zip(arms, points, strict=True)))
        described = [f"{name} {x:.0f} GFLOP {y:.0f}" for name, (x, y) in zip(arms, points, strict=True)]
        return svg_element(drawing, "study-cost", f"Cost and pass@1: {', '.join(described)}.")


def _name_points(axes: Axes, points: list[tuple[str, tuple[float, float]]]) -> None:
    """Places a name beside each point, where it covers the least of points and other names."""
    to_points = 72 / axes.figure.dpi
    at = {name: [v * to_points for v in axes.transData.transform(point)] for name, point in points}
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in at.values()]
    for name, point in points:
        width, height = 0.55 * NAME_SIZE * len(name), 1.1 * NAME_SIZE
        x, y = at[name]
        boxes = [
            (x + dx * (width / 2 + 6) - width / 2, y + dy * (height / 2 + 5) - height / 2)
            for dx, dy in LABEL_OFFSETS
        ]
        covered = [
            sum(
                max(0.0, min(left + width, right) - max(left, x0))
                * max(0.0, min(low + height, high) - max(low, y0))
                for x0, y0, right, high in taken
            )
            for left, low in boxes
        ]
        left, low = boxes[covered.index(min(covered))]
        taken.append((left, low, left + width, low + height))
        axes.annotate(
            name, point, (left - x, low - y), textcoords="offset points", fontsize=NAME_SIZE,
            color=COLOURS["soft"],
        )  # fmt: skip


def curve(arm: Mapping[str, Any], name: str, what: str, label: str) -> str:
    """One line for each seed, smoothed over its rounds."""
    ends = []
    with figure_axes(2.0) as (drawing, axes):
        for curves in arm["curves"]:
            values = curves.get(what, [])
            smooth = running_mean(values, max(1, len(values) // 20))
            axes.plot(range(1, len(smooth) + 1), smooth, color=COLOURS["student"], lw=1.5, alpha=0.75)
            ends.append(f"{smooth[0]:.2f} to {smooth[-1]:.2f}" if smooth else "nothing")
        axes.set_xlabel("round")
        axes.set_ylabel(label)
        return svg_element(drawing, f"study-{what}-{name}", f"{label}, arm {name}: {'; '.join(ends)}.")
