"""Assumptions under which the ranks of delivered outputs are uniform, each checked against the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from stillhouse.stats import RankTest, rank_test, resample_counts, usable_items
from stillhouse.trace.detectors.exchangeable.scores import (
    RankingScore,
    ScoreMatrix,
    missing_columns,
    score_matrix,
)
from stillhouse.trace.finding import Assumption

REJECT_AT = 0.01
"""P-value at which the check of an assumption fails; one in a hundred fails by chance."""
REFERENCE_ONLY = RankingScore(
    ("reference_loglik", "characters"), lambda loglik, characters: loglik / characters, "", ""
)


def assumptions(
    transcript: pa.Table,
    matrix: ScoreMatrix,
    metadata: Mapping[str, Any],
    test: RankTest,
    *,
    early: bool,
) -> tuple[Assumption, ...]:
    """All assumptions of a finding; ``early`` if asking could stop at `stop_at`."""
    k_N = resample_counts(usable_items(matrix.scores_NK1))
    rows = [
        *_log_assumptions(metadata),
        _check_alike(
            "delivered outputs and resamples are of like length", matrix.characters_NK1, "characters"
        ),
        _every_text_scored(matrix.unscored, len(transcript)),
        Assumption(
            "every delivered output has the same number of resamples",
            bool((k_N == k_N.max()).all()),
            f"{int(k_N.min())} to {int(k_N.max())}; each output is ranked among its own",
        ),
        Assumption("the resamples were shown to nobody and published nowhere", None),
    ]
    if not missing_columns(transcript, REFERENCE_ONLY):
        reference = score_matrix(transcript, REFERENCE_ONLY).scores_NK1
        text = "a reference model that had nothing to do with the log prefers neither"
        rows.append(_check_alike(text, reference, "log-likelihood per character"))
    if early:
        text = "the order in which outputs were asked was fixed before, and asking stopped at `stop_at` only"
        rows.append(Assumption(text, None))
    elif test.p_exact is None:
        text = "the p-value holds in finite samples"
        rows.append(Assumption(text, True, "Chernoff's bound: too many outputs for the exact one"))
    return tuple(rows)


def _every_text_scored(unscored: tuple[int, int], total: int) -> Assumption:
    """Whether at most a share :data:`REJECT_AT` of the texts, outputs and resamples, has no score."""
    text, missing = "every text has a score", sum(unscored)
    if not missing:
        return Assumption(text, True, f"{total:,} of {total:,}")
    return Assumption(
        text,
        missing <= REJECT_AT * total,
        f"{missing:,} of {total:,} missing or infinite ({unscored[0]:,} delivered, "
        f"{unscored[1]:,} resamples); such texts are left out alike, whichever they are",
    )


def _log_assumptions(metadata: Mapping[str, Any]) -> list[Assumption]:
    """Assumptions about log and resamples, from the transcript's metadata; unknown (None) without it."""
    left_out = metadata.get("left_out") or {}
    reasons = "; ".join(f"{count:,} {reason}" for reason, count in left_out.items())
    known = True if metadata else None
    log, drawn = metadata.get("log_teachers"), metadata.get("resample_teachers")
    same = None if not log or not drawn or "" in log else sorted(log) == sorted(drawn)
    public, marks = metadata.get("public"), metadata.get("resample_marks")
    kinds = [f"{mark['scheme']}, window {mark['window']}, key {mark['key'][:12]}" for mark in marks or ()]
    marked = Assumption(
        "the resamples carry the watermark that the log carries, under the same key", True, "; ".join(kinds)
    )
    return [
        Assumption(
            "outputs were drawn with a temperature above 0, and duplicates are removed",
            known,
            f"left out before: {reasons or 'none'}" if metadata else "",
        ),
        Assumption(
            "delivered outputs and resamples come from the same teacher, bit for bit",
            same,
            f"log: {_hashes(log)}; resamples: {_hashes(drawn)}",
        ),
        Assumption(
            "the delivered outputs are not public",
            None if public is None else public["found"] == 0,
            "no corpus was searched"
            if public is None
            else f"{public['found']:,} of {public['outputs']:,} outputs share {public['words']} words in a "
            f"row with one of {public['texts']:,} public texts",
        ),
        *([marked] if marks else []),
    ]


def _check_alike(text: str, values_NK1: np.ndarray, unit: str) -> Assumption:
    """Whether delivered outputs and resamples have the same distribution of some other quantity."""
    values_NK1 = usable_items(values_NK1)
    if not len(values_NK1):
        return Assumption(text, None, "nothing to compare")
    p = min(1.0, 2 * min(rank_test(values_NK1).p, rank_test(-values_NK1).p))
    means = f"{np.mean(values_NK1[:, 0]):,.4g} and {np.nanmean(values_NK1[:, 1:]):,.4g} {unit} on average"
    return Assumption(text, p > REJECT_AT, f"{means}; two-sided rank test p = {p:.2g}")


def _hashes(hashes: list[str] | None) -> str:
    return ", ".join((digest or "unknown")[:12] for digest in hashes or ["unknown"])
