"""The results table that a run prints, at most 80 columns wide for ordinary values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def results_table(report: Mapping[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """Title, columns and rows for ``console.table``: one row for each model, each measure with its interval.

    Args:
        report: a whole report, or the result of :func:`.compare.evaluate_models`.
    """
    models, held_out = report["models"], report["held_out"]
    level = f"{models[0]['perplexity']['confidence']:.0%}"
    plural = "s" if held_out["documents"] != 1 else ""
    title = (
        f"{held_out['documents']:,} held-out document{plural}, {held_out['tokens']:,} tokens; "
        f"[{level} intervals clustered by document]"
    )
    columns = ["model", "KL nats/token", "top-1 %", "perplexity", "MB", "tok/s"]
    rows = [_row(model) for model in models]
    if any(model.get("pass_at_1") for model in models):
        columns[3:3] = ["pass@1 %", f"cons@{models[0]['samples']} %"]
        for model, row in zip(models, rows, strict=True):
            row[3:3] = [_cell(model[key], scale=100) for key in ("pass_at_1", "consensus_at_k")]
    return title, columns, rows


def _row(model: Mapping[str, Any]) -> list[str]:
    is_reference = model["key"] == "teacher" and model["kl"] is not None
    speed = model["tokens_per_s"]
    return [
        model["key"],
        "0" if is_reference else _cell(model["kl"]),
        "100" if is_reference else _cell(model["agreement"], scale=100),
        _cell(model["perplexity"]),
        f"{model['bytes'] / 1e6:.0f}" if model["bytes"] >= 1e7 else f"{model['bytes'] / 1e6:.1f}",
        (f"{speed['median']:,.0f}" if speed["median"] >= 1000 else f"{speed['median']:.3g}")
        if speed
        else "–",
    ]


def _cell(estimate: Mapping[str, Any] | None, scale: float = 1.0) -> str:
    """``0.71 [0.69–0.73]``: about three digits, and no space except before the bracket."""
    if estimate is None:
        return "–"
    ends = (estimate["value"], estimate["low"], estimate["high"])
    value, low, high = (None if end is None else end * scale for end in ends)
    if value is None or not math.isfinite(value):
        return "∞"
    # about three digits: six columns with intervals then fit into 80 characters
    form = (
        ".1e" if value >= 1e5 else ".0f" if value >= 100 or scale == 100 else ".1f" if value >= 10 else ".2f"
    )
    if value < 0.1 and scale == 1:
        form = ".3f"
    return f"{value:{form}}" + ("" if low is None else f" [{low:{form}}–{high:{form}}]")
