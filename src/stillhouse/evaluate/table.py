"""The one table that a run prints, at 80 columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

SHORT = {"teacher": "teacher", "before": "before", "student": "student", "control": "control"}


def results_table(report: Mapping[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """Title, columns and rows for ``console.table``: each measure with its interval, a model a row.

    At most 70 characters wide without the gaps between columns, for ordinary values; what is wider wraps.
    """
    models = report["models"]
    confidence = models[0]["perplexity"]["confidence"]
    documents, tokens = report["held_out"]["documents"], report["held_out"]["tokens"]
    title = f"Held out: {documents:,} documents, {tokens:,} tokens; [{confidence:.0%} intervals clustered by document]"
    columns = ["model", "KL nats/token", "top-1 %", "perplexity", "MB", "tok/s"]
    return title, columns, [_row(model) for model in models]


def _row(model: Mapping[str, Any]) -> list[str]:
    by_definition = model["key"] == "teacher"
    return [
        SHORT[model["key"]],
        "0" if by_definition else _cell(model["kl"]),
        "100" if by_definition else _cell(model["agreement"], scale=100),
        _cell(model["perplexity"]),
        f"{model['bytes'] / 1e6:.0f}" if model["bytes"] >= 1e7 else f"{model['bytes'] / 1e6:.1f}",
        "–" if model["tokens_per_s"] is None else f"{model['tokens_per_s']['median']:.3g}",
    ]


def _cell(estimate: Mapping[str, Any] | None, scale: float = 1.0) -> str:
    """``0.71 [0.69–0.73]``: two decimals below 10, one below 100, none above; a third where the value is small."""
    if estimate is None:
        return "–"
    value = estimate["value"] * scale
    if not math.isfinite(value):
        return "∞"
    places = 3 if value < 0.1 else 2 if value < 10 else 1 if value < 100 and scale == 1 else 0
    if value >= 1e5:
        return f"{value:.1e}"
    text = f"{value:.{places}f}"
    if estimate["low"] is None:
        return text
    return f"{text} [{estimate['low'] * scale:.{places}f}–{estimate['high'] * scale:.{places}f}]"
