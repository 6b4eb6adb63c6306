"""The zoo's tables, in the form of benchmarks/RESULTS.md."""

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


def render(results: Mapping[str, Any]) -> str:
    """All tables as Markdown."""
    sections = [_verdicts(results), _other_tests(results)]
    if "descent" in results:
        sections.append(_descent(results))
    sections += [_sizes(results), _power(results), _baselines(results)]
    return "\n\n".join(sections) + f"\n\n{results['seconds']} s in all."


def _verdicts(results: Mapping[str, Any]) -> str:
    rows = []
    for arm, suspects in _by_arm(results):
        rows.append(
            [
                arm,
                str(len(suspects)),
                _median(suspects, "auc", "{:.3f}"),
                _median(suspects, "z", "{:.1f}"),
                _median(suspects, "log10_e", "{:.1f}"),
                _share(suspects, lambda suspect: suspect["log10_e"] >= np.log10(20)),
                _share(suspects, lambda suspect: suspect["log10_e"] >= 3),
                _share(suspects, lambda suspect: suspect["account_p"] <= 1e-3),
                _share(suspects, lambda suspect: suspect["public_p"] <= 1e-3),
                _share(suspects, lambda suspect: suspect["combined_log10_e"] >= 3),
                _times(suspects, "until_20"),
                _times(suspects, "until_1000"),
            ]
        )
    title = (
        f"Suspects: {results['animals']}; {results['outputs']:,} delivered outputs, "
        f"{results['resamples']} resamples of each"
    )
    heads = [
        "arm", "suspects", "AUC", "z", "log10 E", "E ≥ 20", "E ≥ 1,000", "account key p ≤ .001",
        "public key p ≤ .001", "combined E ≥ 1,000", "outputs until E ≥ 20", "until E ≥ 1,000",
    ]  # fmt: skip
    return _table(title, heads, rows)


def _other_tests(results: Mapping[str, Any]) -> str:
    is_quick = "style_p" in results["visits"][0]
    rows = []
    for arm, suspects in _by_arm(results):
        row = [arm]
        for name in ("canaries_p", "rephrasings_p") if is_quick else ("canaries_p",):
            row.append(_share(suspects, lambda suspect, name=name: suspect[name] <= 1e-3))
            row.append(_median(suspects, name, "{:.2g}"))
        rows.append([*row, _share(suspects, lambda suspect: suspect["style_p"] <= 0.05)] if is_quick else row)
    heads = ["arm", "canaries p ≤ .001", "median p"]
    if not is_quick:
        return _table("Twenty canaries, with 99 decoys each", heads, rows)
    title = (
        "Twenty canaries with 99 decoys each, thirty texts of an author in four versions, and style "
        "(19 references: p cannot be below .05)"
    )
    return _table(title, [*heads, "rephrasings p ≤ .001", "median p", "style p ≤ .05"], rows)


def _descent(results: Mapping[str, Any]) -> str:
    rows = [
        [
            model["model"],
            "yes" if model["descends"] else "no",
            f"{model['weights_log10_p']:.1f}",
            f"{model['units_in_place']:.1%}",
            f"{model['signs_kept']:.1%}",
            f"{model['order_log10_p']:.1f}",
            f"{model['tau']:.2f}",
        ]
        for model in results["descent"]
    ]
    heads = [
        "model with the teacher's tokenizer", "from its weights", "weights: log10 p", "units in place",
        "signs kept", "order of training: log10 p", "τ",
    ]  # fmt: skip
    return _table("Whose weights", heads, rows)


def _sizes(results: Mapping[str, Any]) -> str:
    rows = []
    groups = [(arm, suspects) for arm, suspects in _by_arm(results) if not suspects[0]["guilty"]]
    unrelated = [model for model in results.get("descent", ()) if not model["descends"]]
    groups += [(model["model"], [model]) for model in unrelated]
    for arm, suspects in groups:
        nulls = {
            name: np.concatenate([suspect["null"][name] for suspect in suspects])
            for name in NULLS
            if name in suspects[0]["null"]
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


def _power(results: Mapping[str, Any]) -> str:
    rows = []
    k = results["resamples"]
    for arm, suspects in _by_arm(results):
        spec = next(spec for spec in ARMS if spec.name == arm)
        if "auc_of_used" not in suspects[0]:
            continue
        f, aucs = spec.shares["log"], [suspect["auc_of_used"] for suspect in suspects]
        auc = float(np.median(aucs))
        predicted = np.mean([predicted_z(f, results["outputs"], k, own) for own in aucs])
        observed = [suspect["z"] for suspect in suspects]
        # Suspects of one world share the outputs that they did not read, so they count as one.
        error = 1.96 / np.sqrt(len({suspect.get("world", 0) for suspect in suspects}))
        cells = []
        for n in suspects[0]["fired"]:
            observed_share = np.mean([suspect["fired"][n] for suspect in suspects])
            predicted_share = np.mean([power_of_e(f, float(n), k, own, 1000) for own in aucs])
            cells.append(f"{observed_share:.0%} ({predicted_share:.0%})")
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
    sizes = [f"E ≥ 1,000 with {n} outputs (predicted)" for n in results["visits"][0]["fired"]]
    heads = [
        "arm",
        "AUC of what was read (median)",
        "predicted z (mean)",
        "mean z seen",
        *sizes,
        "log for 80%",
    ]
    return _table("Power: f is the share of the log that was read; K resamples", heads, rows)


def _baselines(results: Mapping[str, Any]) -> str:
    names = [name for name in ACCUSERS if name in results["visits"][0]["baselines"]]
    rows = []
    for arm, suspects in _by_arm(results):
        cells = [
            _share([suspect["baselines"] for suspect in suspects], lambda result, name=name: result[name])
            for name in names
        ]
        rows.append([arm, "yes" if suspects[0]["guilty"] else "no", *cells])
    heads = ["arm", "read the log", *(ACCUSERS[name] for name in names)]
    return _table("How often others would have accused the suspect", heads, rows)


def _by_arm(results: Mapping[str, Any]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    by_name = {
        arm.name: [suspect for suspect in results["visits"] if suspect["arm"] == arm.name] for arm in ARMS
    }
    return [(name, suspects) for name, suspects in by_name.items() if suspects]


def _median(suspects: Sequence[Mapping[str, Any]], key: str, form: str) -> str:
    return form.format(float(np.median([suspect[key] for suspect in suspects])))


def _share(suspects: Sequence[Any], test: Callable[[Any], Any]) -> str:
    return f"{sum(bool(test(suspect)) for suspect in suspects)}/{len(suspects)}"


def _times(suspects: Sequence[Mapping[str, Any]], key: str) -> str:
    """Median of the outputs scored with all their resamples; and seconds, if they were measured."""
    reached = sorted(
        (suspect for suspect in suspects if suspect[key] is not None), key=lambda suspect: suspect[key]
    )
    if 2 * len(reached) <= len(suspects):
        return "–"
    middle = reached[len(reached) // 2]
    seconds = f" ({middle[key] * middle['ms_an_output'] / 1000:.0f} s)" if "ms_an_output" in middle else ""
    return f"{middle[key]:,}{seconds}"


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return f"**{title}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)
