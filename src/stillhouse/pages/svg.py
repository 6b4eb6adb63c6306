"""Plots as inline SVG that take their colours and fonts from the page.

matplotlib draws in placeholder colours, which are then replaced by the page's CSS
variables: one plot serves the light page, the dark page and print. The same data
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
"""Placeholder colours; each is replaced by the CSS variable of its name."""

WIDTH_IN = 4.2
"""Width in inches. At the page's 460 pixels, 9 point text is 13.5 pixels high; on a phone, 10."""

STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # labels come from users and may contain a dollar sign
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
    """A new figure with one pair of axes, in our style, without the global state of pyplot."""
    with mpl_style.context(["default", STYLE]):
        drawing = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        FigureCanvasSVG(drawing)
        yield drawing, drawing.add_subplot()


def name_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Labels the rows 0, 1, … of a plot from top to bottom."""
    axes.set_yticks(range(len(labels)), labels, color=COLOURS["ink"], fontsize=9)
    axes.set_ylim(len(labels) - 0.5, -0.7)
    axes.grid(axis="y", visible=False)


def running_mean(values: Sequence[float], reach: int) -> list[float]:
    """The mean of each value and up to ``reach`` neighbours on each side."""
    sums = [0.0, *itertools.accumulate(values)]
    spans = [(max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in spans]


def svg_element(drawing: Figure, name: str, description: str) -> str:
    """The figure as an ``svg`` element with ids unique to ``name``, CSS colours and an accessible label."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        drawing.savefig(
            buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    text = re.sub(
        r"<style.*?</style>", "", text, flags=re.DOTALL
    )  # an inline style applies to the whole page
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
    """The page's font family at the size that matplotlib chose."""
    font_size = re.search(r"[\d.]+px", match.group(0))
    return (f"font-size: {font_size.group(0)}; " if font_size else "") + "font-family: var(--sans)"


def _view_box(svg: str) -> str:
    view_box = re.search(r'viewBox="([^"]+)"', svg)
    assert view_box
    return view_box.group(1)
