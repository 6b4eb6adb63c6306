"""The report's pictures, as inline SVG that takes its colours and fonts from the page.

matplotlib draws in placeholder colours, which are then exchanged for the page's CSS
variables: one picture serves the light and the dark page and paper. The same report
gives the same bytes. Nothing here decides what the numbers mean.
"""

from __future__ import annotations

import html
import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib import style as mpl_style
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from .words import figure

COLOURS = {
    "ink": "#0a0b01",
    "soft": "#0a0b02",
    "rule": "#0a0b03",
    "teacher": "#0a0b04",
    "before": "#0a0b05",
    "offline": "#0a0b09",
    "student": "#0a0b06",
    "control": "#0a0b07",
    "paper": "#0a0b08",
}
"""Placeholders, each exchanged for the CSS variable of its name."""

NAMES = {
    "teacher": "teacher",
    "before": "before training",
    "offline": "after the corpus",
    "student": "student",
    "control": "control",
}

WIDTH_IN = 4.2
"""Inches; at the page's 460 pixels a 9 point letter is 13.5 pixels high, on a telephone 10."""

STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a label is somebody's words, and may hold a dollar sign
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": COLOURS["rule"],
    "axes.labelcolor": COLOURS["soft"],
    "axes.labelsize": 8.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.6,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["soft"],
    "ytick.color": COLOURS["soft"],
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def forest(
    models: Sequence[Mapping[str, Any]], measure: str, *, name: str, unit: str, scale: float = 1.0
) -> str:
    """One row a model: its value as a dot, its interval as a line.

    Args:
        models: entries of the report, without the teacher (0 or 100% by definition).
        measure: ``kl`` or ``agreement``.
        unit: the label of the axis.
        scale: 100 for per cent.
    """
    rows = [m for m in models if m.get(measure)]
    described = []
    with figure_axes(0.62 + 0.36 * len(rows)) as (drawing, axes):
        for y, model in enumerate(rows):
            estimate, colour = model[measure], COLOURS[model["key"]]
            value = estimate["value"] * scale
            if estimate["low"] is not None:
                axes.plot([estimate["low"] * scale, estimate["high"] * scale], [y, y], color=colour, lw=2.5)
            axes.plot([value], [y], "o", ms=5, color=colour)
            axes.annotate(
                figure(value), (value, y), (0, 7), textcoords="offset points", ha="center", fontsize=8.5
            )
            described.append(f"{NAMES[model['key']]} {figure(value)}")
        name_rows(axes, [NAMES[m["key"]] for m in rows])
        axes.set_xlabel(unit)
        axes.margins(x=0.08)
        axes.set_xlim(0, scale if measure == "agreement" else None)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        return svg_element(drawing, name, f"{unit}: {', '.join(described)}.")


def differences(comparison: Mapping[str, Any], *, name: str, against: str) -> str:
    """Paired differences student − other in nats per token, with zero marked: left favours the student."""
    rows = [
        (label, comparison[measure])
        for measure, label in (("kl", "KL to teacher"), ("nll", "NLL of the text"))
        if comparison.get(measure)
    ]
    described = []
    with figure_axes(0.85 + 0.36 * len(rows)) as (drawing, axes):
        ends = [abs(e[end] if e[end] is not None else e["value"]) for _, e in rows for end in ("low", "high")]
        reach = 1.15 * max([*ends, 1e-6])
        axes.axvline(0, color=COLOURS["ink"], lw=1)
        for y, (label, estimate) in enumerate(rows):
            colour = COLOURS["student" if estimate["value"] < 0 else "control"]
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
    """Training loss against tokens seen: each step thin, a running mean thick."""
    seen = [p["tokens"] for p in points if p["loss"] is not None]
    loss = [p["loss"] for p in points if p["loss"] is not None]
    smooth = running_mean(loss, len(loss) // 40)
    with figure_axes(2.1) as (drawing, axes):
        axes.plot(seen, loss, color=COLOURS[key], lw=0.8, alpha=0.45)
        axes.plot(seen, smooth, color=COLOURS[key], lw=2)
        axes.set_xlabel("training tokens")
        axes.set_ylabel(f"{objective}, nats per token")
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _thousands(value)))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        described = (
            f"Training loss ({objective}) from {figure(smooth[0])} to {figure(smooth[-1])} nats per token"
        )
        return svg_element(drawing, name, f"{described} over {seen[-1]:,} tokens.")


def round_curve(points: Sequence[Mapping[str, Any]], field: str, *, name: str, label: str) -> str:
    """What was measured of each on-policy round, thin, and a running mean, thick."""
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
        described = f"{label} from {figure(smooth[0])} to {figure(smooth[-1])} over {len(rounds)} rounds."
        return svg_element(drawing, name, described)


def block_influence(influence: Sequence[float | None], keep: Sequence[int], *, name: str) -> str:
    """How much each layer changes its input, on a logarithmic scale; filled dots are layers that stayed."""
    kept = set(keep)
    drawn = [(layer, value) for layer, value in enumerate(influence) if value is not None and value > 0]
    with figure_axes(2.1) as (drawing, axes):
        axes.set_yscale("log")
        for stayed in (True, False):
            part = [(layer, value) for layer, value in drawn if (layer in kept) == stayed]
            axes.plot(
                [layer for layer, _ in part],
                [value for _, value in part],
                "o",
                ms=5.5,
                color=COLOURS["student" if stayed else "before"],
                markerfacecolor=COLOURS["student"] if stayed else "none",
                label="kept" if stayed else "removed",
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


@contextmanager
def figure_axes(height_in: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure that no other code sees: no global state of pyplot, our style only inside."""
    with mpl_style.context(["default", STYLE]):
        drawing = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        FigureCanvasSVG(drawing)
        yield drawing, drawing.add_subplot()


def name_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels, color=COLOURS["ink"], fontsize=9)
    axes.set_ylim(len(labels) - 0.5, -0.7)
    axes.grid(axis="y", visible=False)


def running_mean(values: Sequence[float], reach: int) -> list[float]:
    """The mean of each value and ``reach`` neighbours on both sides (as many as there are, at the ends)."""
    sums = [0.0, *itertools.accumulate(values)]
    spans = [(max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in spans]


def _thousands(value: float) -> str:
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


def svg_element(drawing: Figure, name: str, description: str) -> str:
    """The figure as an ``svg`` element: ids unique to ``name``, colours as variables, described in words."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        drawing.savefig(
            buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # it would apply to the whole page
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r"font(?:-family)?: ?[^;\"]*'DejaVu Sans'[^;\"]*", _page_font, text)
    for role, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{role})")
    label = html.escape(description)
    head = f'<svg role="img" aria-label="{label}" class="plot" viewBox="{_view_box(text)}">'
    return head + text[text.index(">") + 1 :].strip()


def _page_font(match: re.Match[str]) -> str:
    """The size stays, the family becomes the page's."""
    found = re.search(r"[\d.]+px", match.group(0))
    return (f"font-size: {found.group(0)}; " if found else "") + "font-family: var(--sans)"


def _view_box(svg: str) -> str:
    found = re.search(r'viewBox="([^"]+)"', svg)
    assert found
    return found.group(1)
