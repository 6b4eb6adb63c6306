"""The tables that a run prints, at most 80 columns wide for ordinary values, one precision a column."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stillhouse.evaluate.verdict import SHARES
from stillhouse.pages.numbers import column_decimals, format_column

Table = tuple[str, list[str], list[list[str]]]
"""Title, columns and rows, for ``console.table``."""

DIFFERENCE_NAMES = {
    "kl": "KL nats/token",
    "agreement": "top-1 points",
    "nll": "NLL nats/token",
    "pass_at_1": "pass@1 points",
}
OTHERS = {"before": "before", "control": "control", "offline": "after the corpus"}


def results_table(report: Mapping[str, Any]) -> Table:
    """One row for each model, each measure with its interval.

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
    measured = {
        "KL nats/token": _cells(models, "kl", exact="0"),
        "top-1 %": _cells(models, "agreement", exact="100", scale=100),
    }
    if any(model.get("pass_at_1") for model in models):
        measured["pass@1 %"] = _cells(models, "pass_at_1", scale=100)
        measured[f"cons@{models[0]['samples']} %"] = _cells(models, "consensus_at_k", scale=100)
    measured["perplexity"] = _cells(models, "perplexity")
    sizes = [model["bytes"] / 1e6 for model in models]
    measured["MB"] = [f"{size:.{0 if min(sizes) >= 10 else 1}f}" for size in sizes]
    measured["tok/s"] = format_column([(model["tokens_per_s"] or {}).get("median") for model in models])
    rows = [list(row) for row in zip([model["key"] for model in models], *measured.values(), strict=True)]
    return title, ["model", *measured], rows


def difference_table(report: Mapping[str, Any]) -> Table:
    """One row for each measure: the student minus each other model, with paired intervals, and the margin."""
    comparison = {key: report["comparison"][key] for key in OTHERS if report["comparison"].get(key)}
    margins = report["verdict"].get("margins") or {}
    rows = []
    for measure, name in DIFFERENCE_NAMES.items():
        estimates = [entry.get(measure) for entry in comparison.values()]
        if not any(estimates):
            continue
        scale, most = (100, 1) if measure in SHARES else (1, 3)
        decimals = min(most, column_decimals(estimates, scale))
        margin = f"±{scale * margins[measure]:g}" if measure in margins else "–"
        rows.append([name, *(_estimate(e, f"+.{decimals}f", scale) for e in estimates), margin])
    return "", ["difference", *(f"student − {OTHERS[key]}" for key in comparison), "margin"], rows


def _cells(
    models: Sequence[Mapping[str, Any]], measure: str, *, exact: str | None = None, scale: float = 1.0
) -> list[str]:
    """A measure's column; ``exact`` is the teacher's own value, which holds by definition."""
    is_exact = [exact is not None and m["key"] == "teacher" and bool(m[measure]) for m in models]
    estimates = [model.get(measure) for model in models]
    form = _form([e for e, skip in zip(estimates, is_exact, strict=True) if e and not skip], scale)
    return [
        str(exact) if skip else _estimate(estimate, form(estimate), scale)
        for estimate, skip in zip(estimates, is_exact, strict=True)
    ]


def _form(estimates: Sequence[Mapping[str, Any]], scale: float) -> Callable[[Mapping[str, Any] | None], str]:
    """The number format of a column: about three digits, so that six columns fit into 80 characters."""
    values = [e["value"] * scale for e in estimates if e["value"] is not None and math.isfinite(e["value"])]
    smallest, largest = min(values, default=0.0), max([v for v in values if v < 1e5], default=0.0)
    wanted = 0 if scale == 100 or smallest >= 100 else 3 if smallest < 0.1 else 2 if smallest < 10 else 1
    decimals = min(wanted, max(1 if smallest < 100 else 0, 5 - len(str(int(largest)))))
    # the perplexity of a random model would make the column too wide
    return lambda e: ".1e" if e and e["value"] is not None and e["value"] >= 1e5 else f".{decimals}f"


def _estimate(estimate: Mapping[str, Any] | None, form: str, scale: float) -> str:
    """``0.71 [0.69–0.73]``, or for signed numbers ``−0.14 [−0.16, −0.12]``."""
    if estimate is None:
        return "–"
    ends = (estimate["value"], estimate["low"], estimate["high"])
    value, low, high = (None if end is None else end * scale for end in ends)
    if value is None or not math.isfinite(value):
        return "∞"
    text, low_text, high_text = (
        None if end is None else f"{end:{form}}".replace("-", "−") if "+" in form else f"{end:{form}}"
        for end in (value, low, high)
    )
    joint = ", " if "+" in form else "–"
    return f"{text}" + ("" if low is None else f" [{low_text}{joint}{high_text}]")
