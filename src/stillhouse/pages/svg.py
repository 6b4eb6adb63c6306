"""Pictures as inline SVG that take their colours and fonts from the page.

matplotlib draws in placeholder colours, which are then exchanged for the page's CSS
variables: one picture serves the light and the dark page and paper. The same data
gives the same bytes.
"""

from __future__ import annotations

import html
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib as mpl
from matplotlib import style as mpl_style
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

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
