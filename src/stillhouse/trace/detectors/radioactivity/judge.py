"""The judge of the radioactivity test: scores the suspect's tokens with the watermark's key.

Shapes: N pairs of a window and a token, W tokens of a window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from stillhouse.trace.detectors.transcript import empty_reason
from stillhouse.trace.finding import Assumption, Finding, Level
from stillhouse.watermark import (
    Detection,
    Mark,
    Pairs,
    detection_from_scores,
    distinct_pairs,
    interval,
    parse_key,
    running_log_e,
)

NAME = "radioactivity"
PLACEBOS = 20
"""Number of placebo keys, unless the parameters hold their own."""
CURVE_POINTS = 200
"""Points of a curve in the report."""
_UNITS = {
    "kgw": "green share of distinct (window, token) pairs",
    "gumbel": "mean of −log(1 − r) over distinct (window, token) pairs",
    "tournament": "share of tournament layers won, over distinct (window, token) pairs",
}
_RIVALS: Mapping[str, tuple[str, ...]] = {
    "L1": (
        "The suspect met the teacher's outputs in public: a key that marks everybody's outputs shows "
        "exposure by any route.",
        "The suspect learned from another model that had learned from the teacher.",
        "Somebody who knew the key wrote marked text that the teacher never wrote.",
    ),
    "L2": (
        "The account's outputs reached the suspect through others: a leak, a shared account, a publication.",
        "The suspect learned from another model that had learned from this account's outputs.",
        "Somebody who knew the account's key wrote marked text that the teacher never wrote.",
    ),
}


def judge(transcript: pa.Table, parameters: Mapping[str, Any]) -> Finding:
    """Tests whether the suspect's tokens carry the key's watermark.

    Args:
        parameters: `key` (64 hexadecimal digits), `level` (`L1` or `L2`), `scheme` and `window` as of
            :class:`~stillhouse.watermark.Mark`, `gamma` (kgw), `depth` (tournament); optionally
            `placebo_keys` (keys that marked nothing; by default :data:`PLACEBOS` keys from `seed`) and
            `alpha` (one minus the confidence level of the interval).

    Raises:
        UsageError: the key or another parameter is invalid.
    """
    mark = _mark(parameters)
    level: Level = parameters["level"]
    pairs, left_out = scored_pairs(transcript, mark.window)
    if not len(pairs):
        return Finding(NAME, level, _null(mark), 0, parameters=parameters, reason=_reason(transcript, mark))
    keys = parameters.get("placebo_keys") or placebo_keys(parameters.get("seed", 0))
    scores_N, detection = _detect(mark, pairs)
    placebos = [_detect(replace(mark, key=parse_key(key, "placebo_keys")), pairs)[1] for key in keys]
    low, high = interval(mark, scores_N, 1 - parameters.get("alpha", 0.05))
    rank = 1 + sum(placebo.p_value <= detection.p_value for placebo in placebos)
    return Finding(
        test=NAME,
        level=level,
        null=_null(mark),
        n=detection.pairs,
        statistic=_UNITS[mark.scheme],
        value=detection.mean,
        p_value=detection.p_value,
        e_value=detection.e_value,
        effect={
            "mean": detection.mean,
            "mean_low": low,
            "mean_high": high,
            "expected": detection.expected,
            "z": detection.z,
            "repeated_pairs": pairs.repeated,
            "left_out_in_context": left_out,
            "placebo_rank": rank,
            "placebo_smallest_p": min(placebo.p_value for placebo in placebos),
        },
        assumptions=_assumptions(transcript, pairs, left_out, placebos, rank),
        rivals=_RIVALS[level],
        parameters=parameters,
        series=_series(mark, scores_N),
    )


def placebo_keys(seed: int, count: int = PLACEBOS) -> list[str]:
    """Keys that marked nothing, in hexadecimal: SHA-256 of the seed and a counter."""
    return [
        hashlib.sha256(f"stillhouse placebo key {seed} {number}".encode()).hexdigest()
        for number in range(count)
    ]


def _mark(parameters: Mapping[str, Any]) -> Mark:
    optional = {name: parameters[name] for name in ("gamma", "depth") if name in parameters}
    key = parse_key(parameters["key"], "the parameter `key`")
    return Mark(key, parameters["scheme"], parameters["window"], **optional)


def _detect(mark: Mark, pairs: Pairs) -> tuple[np.ndarray, Detection]:
    scores_N = mark.scores(pairs.windows_NW, pairs.tokens_N)
    return scores_N, detection_from_scores(mark, scores_N)


def scored_pairs(transcript: pa.Table, window: int) -> tuple[Pairs, int]:
    """Distinct pairs of all rows, and the number left out because their window occurred in the context."""
    windows, tokens, left_out = [], [], 0
    columns = (transcript[name].to_pylist() for name in ("context", "tokens", "predicted"))
    for context, ids, predicted in zip(*columns, strict=True):
        for before, token in _row_pairs(context, ids, predicted, window):
            if before is None:
                left_out += 1
            else:
                windows.append(before)
                tokens.append(token)
    shaped = np.array(windows, np.int64).reshape(len(windows), window)
    return distinct_pairs(Pairs(shaped, np.array(tokens, np.int64))), left_out


def _row_pairs(
    context: list[int], ids: list[int], predicted: list[int] | None, window: int
) -> Iterator[tuple[tuple[int, ...] | None, int]]:
    """Each window of one text with the token after it; None for a window that occurred in the context."""
    seen = {tuple(context[end - window : end]) for end in range(window, len(context) + 1)}
    if predicted is None:
        for end in range(window, len(ids)):
            before = tuple(ids[end - window : end])
            yield None if before in seen else before, ids[end]
        return
    whole, start = context + ids, len(context)
    for end in range(start + 1, len(whole) + 1):
        before = tuple(whole[max(0, end - window) : end])
        if end - start >= window:
            yield None if before in seen else before, predicted[end - start - 1]
        seen.add(before)


def _null(mark: Mark) -> str:
    law = {
        "kgw": f"Binomial(n, γ = {mark.gamma:g})",
        "gumbel": "Gamma(n, 1)",
        "tournament": f"Binomial({mark.depth} n, ½)",
    }[mark.scheme]
    return (
        "The suspect's choices of tokens are independent of the key. The key's own randomness then makes the "
        f"sum of scores over n distinct pairs {law}, whatever the suspect is and whatever it says."
    )


def _reason(transcript: pa.Table, mark: Mark) -> str:
    """Why there is no pair to score."""
    if reason := empty_reason(transcript):
        return reason
    if not len(transcript):
        return "the transcript is empty: no output of the log was put to the suspect"
    errors = [error for error in transcript["error"].to_pylist() if error]
    if len(errors) == len(transcript):
        return f"the suspect answered none of {len(errors):,} prompts; the first time: {errors[0]}"
    return (
        f"no token of {len(transcript):,} texts could be counted: each has fewer than {mark.window + 1} "
        "tokens, or repeats its context; longer answers would help"
    )


def _assumptions(
    transcript: pa.Table,
    pairs: Pairs,
    left_out: int,
    placebos: Sequence[Detection],
    rank: int,
) -> tuple[Assumption, ...]:
    missing = sum(error is not None for error in transcript["error"].to_pylist())
    below = sum(placebo.p_value <= 0.05 for placebo in placebos)
    smallest = min(placebo.p_value for placebo in placebos)
    return (
        Assumption(
            "The key was drawn at random, and nobody who made the suspect or its other texts knew it.",
            None,
            "its commitment is older than the first query, or is not; see there",
        ),
        Assumption(
            "No pair counts twice.",
            True,
            f"{pairs.repeated:,} repetitions left out, {len(pairs):,} pairs counted",
        ),
        Assumption(
            "The suspect did not copy the mark from what it was shown.",
            True,
            f"{left_out:,} tokens left out, whose window was in context",
        ),
        Assumption(
            "Keys that marked nothing show nothing: this tests the arithmetic, not the suspect.",
            smallest * len(placebos) > 0.001,
            f"{below} of {len(placebos)} placebo keys with p ≤ .05, the smallest {smallest:.3g}; "
            f"the real key's rank {rank} of {len(placebos) + 1}",
        ),
        Assumption(
            "The suspect answered.",
            missing == 0,
            f"{len(transcript) - missing:,} of {len(transcript):,} texts; silence moves no p-value, it costs "
            "power",
        ),
    )


def _series(mark: Mark, scores_N: np.ndarray) -> dict[str, list[float]]:
    """The e-value after each pair."""
    counts = np.unique(np.linspace(1, len(scores_N), min(CURVE_POINTS, len(scores_N))).astype(int))
    log10_e = running_log_e(mark, scores_N)[counts - 1] / np.log(10)
    return {"pairs": counts.astype(float).tolist(), "log10_e": log10_e.tolist()}
