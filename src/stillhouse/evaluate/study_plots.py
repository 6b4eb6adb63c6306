"""A study's pictures: scores of the arms, scores against cost, and the curves of reinforcement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .plots import COLOURS, figure_axes, name_rows, running_mean, svg_element

MARKS = ("student", "before")
"""Colours of the tests, in their order (those of the student and of the student before training)."""
CURVES = {"reward": "mean reward of a round", "length": "tokens of an answer"}


def draw(results: Mapping[str, Any]) -> dict[str, str]:
    """All pictures by name: ``scores``, ``cost``, and ``curve_<what>_<arm>`` for arms with rounds."""
    pictures = {"scores": scores(results), "cost": cost(results)}
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
                found, y = arm["tests"][test]["pass_at_1"], row + 0.22 * (number - 0.5)
                if found["low"] is not None:
                    low, high = max(0.0, found["low"]), min(1.0, found["high"])
                    axes.plot([100 * low, 100 * high], [y, y], color=colour, lw=2.2)
                label = test if row == 0 else None
                axes.plot([100 * found["value"]], [y], "o", ms=4.5, color=colour, label=label)
                described.append(f"{name} on {test} {100 * found['value']:.0f}")
        name_rows(axes, list(arms))
        axes.set_xlim(0, 100)
        axes.set_xlabel("pass@1, %")
        axes.legend(frameon=False, fontsize=8.5, loc="lower right", labelcolor=COLOURS["soft"])
        return svg_element(drawing, "study-scores", f"pass@1 in per cent: {', '.join(described)}.")


def cost(results: Mapping[str, Any]) -> str:
    """pass@1 on the first test against the arm's own operations."""
    test, described = results["tests"][0], []
    with figure_axes(3.0) as (drawing, axes):
        axes.set_xscale("log")
        for name, arm in results["arms"].items():
            x, y = arm["flops"] / 1e9, 100 * arm["tests"][test]["pass_at_1"]["value"]
            axes.plot([x], [y], "o", ms=5, color=COLOURS["student"])
            axes.annotate(
                name, (x, y), (0, 6), textcoords="offset points", ha="center", fontsize=7.5,
                color=COLOURS["soft"],
            )  # fmt: skip
            described.append(f"{name} {x:.0f} GFLOP {y:.0f}")
        axes.margins(0.12)
        axes.set_xlabel("own operations, GFLOP (logarithmic)")
        axes.set_ylabel(f"pass@1 {test}, %")
        return svg_element(drawing, "study-cost", f"Cost and pass@1: {', '.join(described)}.")


def curve(arm: Mapping[str, Any], name: str, what: str, label: str) -> str:
    """One line a seed, smoothed over its rounds."""
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
