"""The zoo's tables, as they stand in benchmarks/RESULTS.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from stillhouse.stats import power_of_e, predicted_z

from . import measure
from .arms import ARMS

NULLS = {
    "exchangeable": "resamples: exact p",
    "account": "account key: exact p",
    "canaries": "canaries: exact p",
    "rephrasings": "rephrasings: exact p",
    "combined": "both: 1 / combined E",
    "highest_e": "resamples: E, stopped at its highest",
    "weights": "weights: exact p",
    "order": "order of training: exact p",
}
ACCUSERS = {
    "provenance": "pooled-z provenance",
    "style": "style classifier",
    "similarity": "similarity ≥ .7",
    "identity": "says the name",
}


def render(found: Mapping[str, Any]) -> str:
    """All tables as Markdown."""
    parts = [_verdicts(found), _other_tests(found)]
    if "descent" in found:
        parts.append(_descent(found))
    parts += [_sizes(found), _power(found), _baselines(found)]
    return "\n\n".join(parts) + f"\n\n{found['seconds']} s in all."


def _verdicts(found: Mapping[str, Any]) -> str:
    rows = []
    for arm, visits in _by_arm(found):
        rows.append(
            [
                arm,
                str(len(visits)),
                _median(visits, "auc", "{:.3f}"),
                _median(visits, "z", "{:.1f}"),
                _median(visits, "log10_e", "{:.1f}"),
                _share(visits, lambda visit: visit["log10_e"] >= np.log10(20)),
                _share(visits, lambda visit: visit["log10_e"] >= 3),
                _share(visits, lambda visit: visit["account_p"] <= 1e-3),
                _share(visits, lambda visit: visit["public_p"] <= 1e-3),
                _share(visits, lambda visit: visit["combined_log10_e"] >= 3),
                _times(visits, "until_20"),
                _times(visits, "until_1000"),
            ]
        )
    title = (
        f"Suspects: {found['animals']}; {found['outputs']:,} delivered outputs, "
        f"{found['resamples']} resamples of each"
    )
    heads = [
        "arm", "suspects", "AUC", "z", "log10 E", "E ≥ 20", "E ≥ 1,000", "account key p ≤ .001",
        "public key p ≤ .001", "combined E ≥ 1,000", "outputs until E ≥ 20", "until E ≥ 1,000",
    ]  # fmt: skip
    return _table(title, heads, rows)


def _other_tests(found: Mapping[str, Any]) -> str:
    is_quick = "style_p" in found["visits"][0]
    rows = []
    for arm, visits in _by_arm(found):
        row = [arm]
        for name in ("canaries_p", "rephrasings_p") if is_quick else ("canaries_p",):
            row.append(_share(visits, lambda visit, name=name: visit[name] <= 1e-3))
            row.append(_median(visits, name, "{:.2g}"))
        rows.append([*row, _share(visits, lambda visit: visit["style_p"] <= 0.05)] if is_quick else row)
    heads = ["arm", "canaries p ≤ .001", "median p"]
    if not is_quick:
        return _table("Twenty canaries, with 99 decoys each", heads, rows)
    title = (
        "Twenty canaries with 99 decoys each, thirty texts of an author in four versions, and style "
        "(19 references: p cannot be below .05)"
    )
    return _table(title, [*heads, "rephrasings p ≤ .001", "median p", "style p ≤ .05"], rows)


def _descent(found: Mapping[str, Any]) -> str:
    rows = [
        [
            one["model"],
            "yes" if one["descends"] else "no",
            f"{one['weights_log10_p']:.1f}",
            f"{one['units_in_place']:.1%}",
            f"{one['signs_kept']:.1%}",
            f"{one['order_log10_p']:.1f}",
            f"{one['tau']:.2f}",
        ]
        for one in found["descent"]
    ]
    heads = [
        "model with the teacher's tokenizer", "from its weights", "weights: log10 p", "units in place",
        "signs kept", "order of training: log10 p", "τ",
    ]  # fmt: skip
    return _table("Whose weights", heads, rows)


def _sizes(found: Mapping[str, Any]) -> str:
    rows = []
    groups = [(arm, visits) for arm, visits in _by_arm(found) if not visits[0]["guilty"]]
    strangers = [one for one in found.get("descent", ()) if not one["descends"]]
    groups += [(one["model"], [one]) for one in strangers]
    for arm, visits in groups:
        nulls = {
            name: np.concatenate([visit["null"][name] for visit in visits])
            for name in NULLS
            if name in visits[0]["null"]
        }
        if "highest_e" in nulls:
            nulls["highest_e"] = 1 / np.maximum(nulls["highest_e"], 1.0)
        for name, p_values in nulls.items():
            size = measure.size(p_values)
            cells = [
                f"{size.rates[level]:.4f} [{low:.4f}, {high:.4f}]"
                for level, (low, high) in size.bounds.items()
            ]
            rows.append([arm, NULLS[name], f"{size.draws:,}", *cells, "yes" if size.exceeds else "no"])
    heads = ["arm", "test", "draws", "size at .05", "at .01", "at .001", "beyond nominal"]
    return _table(
        "Size where nothing of the log was read: labels and keys drawn anew, 95% Clopper–Pearson", heads, rows
    )


def _power(found: Mapping[str, Any]) -> str:
    rows = []
    k = found["resamples"]
    for arm, visits in _by_arm(found):
        spec = next(one for one in ARMS if one.name == arm)
        if "auc_of_used" not in visits[0]:
            continue
        f, aucs = spec.shares["log"], [visit["auc_of_used"] for visit in visits]
        auc = float(np.median(aucs))
        predicted = np.mean([predicted_z(f, found["outputs"], k, own) for own in aucs])
        observed = [visit["z"] for visit in visits]
        # Suspects of one world share the outputs that they did not read: as if they were one.
        error = 1.96 / np.sqrt(len({visit.get("world", 0) for visit in visits}))
        cells = []
        for n in visits[0]["fired"]:
            seen = np.mean([visit["fired"][n] for visit in visits])
            law = np.mean([power_of_e(f, float(n), k, own, 1000) for own in aucs])
            cells.append(f"{seen:.0%} ({law:.0%})")
        mean = float(np.mean(observed))
        rows.append(
            [
                arm,
                f"{auc:.3f}",
                f"{predicted:.1f}",
                f"{mean:.1f} [{mean - error:.1f}, {mean + error:.1f}]",
                *cells,
                f"{needed:,}" if (needed := measure.needed(f, auc, k)) else "–",
            ]
        )
    sizes = [f"E ≥ 1,000 with {n} outputs (predicted)" for n in found["visits"][0]["fired"]]
    heads = [
        "arm",
        "AUC of what was read (median)",
        "predicted z (mean)",
        "mean z seen",
        *sizes,
        "log for 80%",
    ]
    return _table("Power: f is the share of the log that was read; K resamples", heads, rows)


def _baselines(found: Mapping[str, Any]) -> str:
    names = [name for name in ACCUSERS if name in found["visits"][0]["baselines"]]
    rows = []
    for arm, visits in _by_arm(found):
        cells = [
            _share([visit["baselines"] for visit in visits], lambda one, name=name: one[name])
            for name in names
        ]
        rows.append([arm, "yes" if visits[0]["guilty"] else "no", *cells])
    heads = ["arm", "read the log", *(ACCUSERS[name] for name in names)]
    return _table("How often others would have accused the suspect", heads, rows)


def _by_arm(found: Mapping[str, Any]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    by_name = {arm.name: [visit for visit in found["visits"] if visit["arm"] == arm.name] for arm in ARMS}
    return [(name, visits) for name, visits in by_name.items() if visits]


def _median(visits: Sequence[Mapping[str, Any]], key: str, form: str) -> str:
    return form.format(float(np.median([visit[key] for visit in visits])))


def _share(visits: Sequence[Any], test: Callable[[Any], Any]) -> str:
    return f"{sum(bool(test(visit)) for visit in visits)}/{len(visits)}"


def _times(visits: Sequence[Mapping[str, Any]], key: str) -> str:
    """Outputs that were asked about, with all their resamples; and seconds, where these were taken."""
    reached = sorted((visit for visit in visits if visit[key] is not None), key=lambda visit: visit[key])
    if 2 * len(reached) <= len(visits):
        return "–"
    middle = reached[len(reached) // 2]
    seconds = f" ({middle[key] * middle['ms_an_output'] / 1000:.0f} s)" if "ms_an_output" in middle else ""
    return f"{middle[key]:,}{seconds}"


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return f"**{title}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)
