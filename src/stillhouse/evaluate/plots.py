"""Plots of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from stillhouse.pages.numbers import column_decimals, format_count, format_number
from stillhouse.pages.svg import COLOURS, figure_axes, name_rows, running_mean, svg_element

NAMES = {
    "teacher": "teacher",
    "before": "before training",
    "offline": "after the corpus",
    "student": "student",
    "control": "control",
}


def forest(
    models: Sequence[Mapping[str, Any]], measure: str, *, name: str, unit: str, scale: float = 1.0
) -> str:
    """A forest plot: one row for each model, with its value as a dot and its interval as a line.

    Args:
        models: entries of the report, without the teacher (0 or 100% by definition).
        measure: ``kl`` or ``agreement``.
        unit: label of the axis.
        scale: 100 for per cent.
    """
    rows = [m for m in models if m.get(measure)]
    decimals = min(3, column_decimals([m[measure] for m in rows], scale))
    described = []
    with figure_axes(0.62 + 0.36 * len(rows)) as (drawing, axes):
        for y, model in enumerate(rows):
            estimate, colour = model[measure], COLOURS[model["key"]]
            value = estimate["value"] * scale
            if estimate["low"] is not None:
                axes.plot([estimate["low"] * scale, estimate["high"] * scale], [y, y], color=colour, lw=2.5)
            axes.plot([value], [y], "o", ms=5, color=colour)
            text = f"{value:,.{decimals}f}"
            axes.annotate(
                text,
                (value, y),
                (0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=8.5,
            )
            described.append(f"{NAMES[model['key']]} {text}")
        name_rows(axes, [NAMES[m["key"]] for m in rows])
        axes.set_xlabel(unit)
        axes.margins(x=0.08)
        # from zero, so that distances are comparable by eye
        axes.set_xlim(0, scale if measure == "agreement" else None)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        return svg_element(drawing, name, f"{unit}: {', '.join(described)}.")


def differences(comparison: Mapping[str, Any], *, name: str, against: str) -> str:
    """Paired differences student − other in nats per token, with a line at zero; left favours the student."""
    rows = [
        (label, comparison[measure])
        for measure, label in (("kl", "KL to teacher"), ("nll", "NLL of the text"))
        if comparison.get(measure)
    ]
    described = []
    with figure_axes(0.85 + 0.36 * len(rows)) as (drawing, axes):
        # symmetric around zero, so that the side of a dot shows whom it favours
        ends = [abs(e[end] if e[end] is not None else e["value"]) for _, e in rows for end in ("low", "high")]
        reach = 1.15 * max([*ends, 1e-6])
        axes.axvline(0, color=COLOURS["ink"], lw=1)
        for y, (label, estimate) in enumerate(rows):
            colour = COLOURS["student" if estimate["value"] < 0 else against]
            if estimate["low"] is not None:
                axes.plot([estimate["low"], estimate["high"]], [y, y], color=colour, lw=2.5)
            axes.plot([estimate["value"]], [y], "o", ms=5, color=colour)
            text = f"{estimate['value']:+.3f}".replace("-", "−")
            axes.annotate(
                text, (estimate["value"], y), (0, 7), textcoords="offset points", ha="center", fontsize=8.5
            )
            described.append(f"{label} {text}")
        name_rows(axes, [label for label, _ in rows])
        axes.set_xlim(-reach, reach)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.set_xlabel(f"student − {against}, nats per token\n← favours the student · favours {against} →")
        return svg_element(drawing, name, f"Student minus {against}, nats per token: {', '.join(described)}.")


def loss_curve(points: Sequence[Mapping[str, Any]], *, key: str, name: str, objective: str) -> str:
    """Training loss over tokens: each step as a thin line, a running mean as a thick one."""
    seen = [p["tokens"] for p in points if p["loss"] is not None]
    loss = [p["loss"] for p in points if p["loss"] is not None]
    smooth = running_mean(loss, len(loss) // 40)  # over about 5% of the run
    with figure_axes(2.1) as (drawing, axes):
        axes.plot(seen, loss, color=COLOURS[key], lw=0.8, alpha=0.45)
        axes.plot(seen, smooth, color=COLOURS[key], lw=2)
        axes.set_xlabel("training tokens")
        axes.set_ylabel(f"{objective}, nats per token")
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        first, last = format_number(smooth[0]), format_number(smooth[-1])
        described = f"Training loss ({objective}) from {first} to {last} nats per token"
        return svg_element(drawing, name, f"{described} over {seen[-1]:,} tokens.")


def round_curve(points: Sequence[Mapping[str, Any]], field: str, *, name: str, label: str) -> str:
    """A measure over on-policy rounds: each round as a thin line, a running mean as a thick one."""
    rounds = [p["step"] for p in points if p.get(field) is not None]
    values = [p[field] for p in points if p.get(field) is not None]
    smooth = running_mean(values, len(values) // 40)
    with figure_axes(2.1) as (drawing, axes):
        axes.plot(rounds, values, color=COLOURS["student"], lw=0.8, alpha=0.45)
        axes.plot(rounds, smooth, color=COLOURS["student"], lw=2)
        axes.set_xlabel("rounds")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        first, last = format_number(smooth[0]), format_number(smooth[-1])
        described = f"{label} from {first} to {last} over {len(rounds)} rounds."
        return svg_element(drawing, name, described)


def block_influence(influence: Sequence[float | None], keep: Sequence[int], *, name: str) -> str:
    """How much each layer changes its input, on a logarithmic scale; filled dots are the layers kept."""
    kept = set(keep)
    drawn = [(layer, value) for layer, value in enumerate(influence) if value is not None and value > 0]
    with figure_axes(2.1) as (drawing, axes):
        axes.set_yscale("log")
        for is_kept in (True, False):
            points = [(layer, value) for layer, value in drawn if (layer in kept) == is_kept]
            axes.plot(
                [layer for layer, _ in points],
                [value for _, value in points],
                "o",
                ms=5.5,
                color=COLOURS["student" if is_kept else "before"],
                markerfacecolor=COLOURS["student"] if is_kept else "none",
                label="kept" if is_kept else "removed",
            )
        axes.set_xlabel("layer of the parent")
        axes.set_ylabel("block influence (log scale)")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.legend(frameon=False, fontsize=8.5, loc="upper center", ncols=2)
        removed = ", ".join(str(layer) for layer in range(len(influence)) if layer not in kept) or "none"
        return svg_element(drawing, name, f"Block influence of {len(influence)} layers; removed: {removed}.")
