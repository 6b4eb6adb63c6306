"""Writes ``report.json`` and ``report.html``, an offline page made from it.

The page has no script and loads nothing, and its content security policy forbids
both: answers of models are untrusted text and are escaped like all other text. It
adds no number that is not in ``report.json``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stillhouse.divergences import OBJECTIVES
from stillhouse.evaluate.schema import Report
from stillhouse.evaluate.verdict import MARGINS, SHARES, state_of
from stillhouse.files import atomic_write
from stillhouse.pages import numbers, page_template
from stillhouse.pages.fact_names import STARTS, TIMES, fact_name

_TITLES: dict[str, str] = {name: kind.title for name, kind in OBJECTIVES.items()}
ROUNDS = {"reward": "mean reward", "length": "tokens of an answer", "entropy": "entropy, nats per token"}
"""Measures of on-policy rounds that are plotted, with the labels of their axes."""
SCALED = (*SHARES, "consensus_at_k")
"""Measures shown in per cent."""
FEW_DOCUMENTS = 20
"""With fewer held-out documents the page and the terminal warn that the intervals are rough."""


def write_report(run_dir: str | Path, report: Mapping[str, Any]) -> None:
    """Writes ``report.json`` and ``report.html`` into ``run_dir``, each atomically.

    Args:
        report: the fields of :class:`.schema.Report`.

    Raises:
        pydantic.ValidationError: a field is missing, unknown or of the wrong type.
        StorageError: the files cannot be written.
    """
    checked = Report.model_validate(report)
    # the JSON first: it is the record, and the page can be made from it again
    atomic_write(Path(run_dir) / "report.json", checked.model_dump_json(indent=2) + "\n")
    atomic_write(Path(run_dir) / "report.html", render_page(checked.model_dump()))


def render_page(report: Mapping[str, Any]) -> str:
    """The page as one HTML text; the same report gives the same page."""
    filters = {
        "interval": numbers.format_interval,
        "value": plain_value,
        "title": fact_name,
        "duration": lambda seconds: numbers.format_duration(seconds, decimals=1),
    }
    return page_template(__package__, "report.html.j2", filters).render(
        report=report,
        columns=_columns(report),
        decimals=_decimals(report["models"]),
        difference_decimals=_decimals(report["comparison"].values()),
        margins=report["verdict"]["margins"],
        plots=draw(report),
        objective=_TITLES.get(report["objective"], report["objective"]),
        few_documents=few_documents(report),
        facts=_student_facts(report["student_facts"]),
        counts={k: v for k, v in report["corpus"].items() if k not in ("rejected", *TIMES)},
        confidence=report["models"][0]["perplexity"]["confidence"],
    )


def few_documents(report: Mapping[str, Any]) -> str | None:
    """A warning that the intervals are rough, or None if there are enough held-out documents."""
    documents = report["held_out"].get("documents", 0)
    if documents >= FEW_DOCUMENTS:
        return None
    return (
        f"Few documents: with {documents} held-out document{'s' * (documents != 1)} the intervals are rough."
    )


def _columns(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Parameters, sizes and speeds of all models as text, each column in one unit and one precision."""
    models = report["models"]
    speeds = [model["tokens_per_s"] or {} for model in models]
    medians = numbers.format_column([speed.get("median") for speed in speeds])
    decimals = max((len(text.partition(".")[2]) for text in medians), default=0)
    columns = {
        "parameters": numbers.format_column([model["parameters"] for model in models], unit="count"),
        "bytes": numbers.format_column([model["bytes"] for model in models], unit="B"),
        "speed": medians,
        "speeds": [f"{s['low']:,.{decimals}f} to {s['high']:,.{decimals}f}" if s else "" for s in speeds],
    }
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _decimals(entries: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The number of decimals of each measure's column; the teacher's own row is exact and does not count."""
    rows = [entry for entry in entries if entry.get("key") != "teacher"]
    return {
        measure: numbers.column_decimals([row.get(measure) for row in rows], 100 if measure in SCALED else 1)
        for measure in (*MARGINS, "consensus_at_k", "perplexity")
    }


def draw(report: Mapping[str, Any]) -> dict[str, str]:
    """The plots that this report has data for, by name, as trusted markup."""
    from markupsafe import Markup

    from stillhouse.evaluate import plots

    pictures: dict[str, str] = {}
    others = [m for m in report["models"] if m["key"] != "teacher"]
    if any(m["kl"] for m in others):
        pictures["kl"] = plots.forest(others, "kl", name="kl", unit="KL to the teacher, nats per token")
        pictures["agreement"] = plots.forest(
            others, "agreement", name="agreement", unit="top-1 agreement with the teacher, %", scale=100
        )
    against = report["verdict"]["against"]
    comparison = report["comparison"].get(against) if against else None
    # a loss in agreement or pass@1, which the picture does not have, must not hide behind gains that it has
    if comparison and not any(comparison[m] and state_of(m, comparison[m]) == "worse" for m in SHARES):
        pictures["difference"] = plots.differences(comparison, name="diff", against=against)
    objective = str(report["objective"])
    objectives = {"student": objective, "offline": objective, "control": "cross_entropy"}
    for key, points in report["training"].items():
        for field, label in ROUNDS.items():
            if any(p.get(field) is not None for p in points):
                pictures[f"round_{field}"] = plots.round_curve(
                    points, field, name=f"round-{field}", label=label
                )
        if "round_reward" in pictures and key == "student":
            continue  # a policy-gradient loss is not comparable between rounds and would mislead
        if any(p["loss"] is not None for p in points):
            label = _TITLES.get(objectives[key], objectives[key] or "loss")
            pictures[f"loss_{key}"] = plots.loss_curve(points, key=key, name=f"loss-{key}", objective=label)
    influence = report["student_facts"].get("influence")
    if influence:
        keep = report["student_facts"].get("keep") or range(len(influence))
        pictures["influence"] = plots.block_influence(influence, keep, name="influence")
    return {name: Markup(svg) for name, svg in pictures.items()}


def _student_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The student facts without those that are plotted; each healed gap is one phrase."""
    shown = {key: value for key, value in facts.items() if key not in ("influence", *TIMES)}
    if facts.get("init") in STARTS:
        shown["init"] = STARTS[facts["init"]]
    if facts.get("healed"):
        shown["healed"] = [
            f"layers {gap['first']} to {gap['last']} (error {numbers.format_number(gap['error_before'])} to "
            f"{numbers.format_number(gap['error_after'])})"
            for gap in facts["healed"]
        ]
    return shown


def plain_value(value: Any) -> str:
    """A fact as text: yes or no, thousands separators, joined lists; None is a dash."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return numbers.format_number(value, 4)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(plain_value(item) for item in value) or "–"
    if isinstance(value, Mapping):
        return "; ".join(f"{fact_name(k)} {plain_value(v)}" for k, v in value.items()) or "–"
    return str(value)
