"""The judge of the exchangeable test: rank test, e-process, share of the log used, and power.

Shapes: N outputs, K resamples of each, S stakes of a bet.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from stillhouse.errors import UsageError
from stillhouse.stats import (
    SMALLEST,
    STAKES,
    RankTest,
    delivered_win_rates,
    detectable_effect,
    e_from_log,
    log_rank_e_process,
    mid_ranks,
    p_from_e,
    power_of_e,
    rank_test,
    resample_counts,
    rounds_until,
    usable_items,
)
from stillhouse.trace.detectors.exchangeable.assumptions import assumptions
from stillhouse.trace.detectors.exchangeable.observe import METADATA_KEY
from stillhouse.trace.detectors.exchangeable.scores import (
    RankingScore,
    ScoreMatrix,
    find_score,
    missing_columns,
    score_matrix,
)
from stillhouse.trace.finding import Finding, Level

NAME = "exchangeable"
LEVEL: Level = "L2"
NULL = (
    "The suspect was not trained on the delivered outputs. Then each delivered output and the fresh outputs "
    "that the archived teacher drew for the same prompt and settings are exchangeable to it, whatever it "
    "learned elsewhere: the label `delivered` is placed uniformly among them, independently for each output."
)
RIVALS = (
    "the log, or part of it, was published or leaked, and the suspect was trained on that copy",
    "the account was shared, resold or broken into, and somebody else trained on its outputs",
    "an intermediary that saw the outputs (a reseller, a browser extension, a data broker) passed them on",
    "the suspect was trained on another model that had been trained on these outputs word for word",
    "the resamples were not drawn by the same model with the same settings (see the assumptions)",
)
CURVE_POINTS = 300
"""Points of a curve in the report."""
POWER = 0.8
"""The power at which `detectable_f` and `detectable_effect` are computed."""


def judge(transcript: pa.Table, parameters: Mapping[str, Any]) -> Finding:
    """Permutation test and e-process on the scores, with bounds on the share f of the log that was used.

    Args:
        transcript: columns id, draw (0 delivered, 1 … K resamples), text, and those of the score; one row per
            text, outputs in the order in which they were asked.
        parameters: ``score`` (a name in :data:`stillhouse.trace.detectors.exchangeable.scores.SCORES`);
            ``alpha``, one minus the confidence level of bounds (0.05); ``surrogate_auc``, a number or
            [low, high]: the probability that an output outranks its resample in a model that was trained on
            it; ``stop_at``: the E at which asking stops; ``share`` and ``hard``: the share of the log and the
            E that `power` refers to (0.05, 1000).

    Raises:
        UsageError: the score is unknown, or ``surrogate_auc`` is not above 0.5.
    """
    score = find_score(str(parameters.get("score", "loglik")))
    if (surrogate := parameters.get("surrogate_auc")) is not None and np.min(surrogate) <= 0.5:
        raise UsageError(
            f"surrogate_auc {surrogate} is not above 0.5, so it gives no bound",
            hint="Leave it out, or choose a score that works on the surrogate.",
        )
    if missing := missing_columns(transcript, score):
        return _not_run(
            parameters, f"the transcript has no values of {', '.join(missing)}; it takes {score.requirement}"
        )
    matrix = score_matrix(transcript, score)
    if not len(usable_items(matrix.scores_NK1)):
        return _not_run(parameters, _why_none(transcript, matrix))
    return _finding(transcript, matrix, score, parameters)


def _finding(
    transcript: pa.Table, matrix: ScoreMatrix, score: RankingScore, parameters: Mapping[str, Any]
) -> Finding:
    metadata = json.loads((transcript.schema.metadata or {}).get(METADATA_KEY, b"{}"))
    scores_NK1 = usable_items(matrix.scores_NK1)
    total = len(scores_NK1)
    log_e_N = log_rank_e_process(scores_NK1)
    stop_at = parameters.get("stop_at")
    stopped = None if stop_at is None else rounds_until(log_e_N, float(stop_at))
    n = stopped or len(log_e_N)
    scores_NK1, log_e_N = scores_NK1[:n], log_e_N[:n]
    test = rank_test(scores_NK1)
    k = float(np.mean(resample_counts(scores_NK1)))
    # With early stopping p comes from the e-process: the permutation p-value assumes a size fixed in advance.
    p_value = test.p if stop_at is None else max(SMALLEST, p_from_e(e_from_log(log_e_N.max())))
    log_size = metadata.get("log_size") or total
    effect: dict[str, float | None] = {
        "auc": test.auc,
        "z": test.z,
        "resamples_each": k,
        **_share_used(scores_NK1, test, parameters),
        **_power(n, k, parameters),
    }
    if stop_at is None:
        effect |= {"p_exact": test.p_exact, "p_bound": test.p_bound, "p_normal": test.p_normal}
    else:
        effect |= {"stopped_after": float(n) if stopped else None, "saved": 1.0 - n / log_size}
    return Finding(
        test=NAME,
        level=LEVEL,
        null=NULL,
        n=n,
        statistic=f"z of the ranks of the delivered outputs among their resamples, by {score.description}",
        value=test.z,
        p_value=p_value,
        e_value=e_from_log(log_e_N[-1]),
        effect=effect,
        assumptions=assumptions(transcript, matrix, metadata, test, early=stop_at is not None),
        rivals=RIVALS,
        parameters=dict(parameters),
        series=_series(scores_NK1, log_e_N),
    )


def in_words(finding: Finding) -> str:
    """What a finding implies for f, in one or two sentences; never that the suspect is innocent."""
    effect = finding.effect
    if not finding.ran:
        return f"The test could not run: {finding.reason}. That says nothing about the suspect."
    confidence = f"{1 - float(finding.parameters.get('alpha', 0.05)):.0%}"
    low, high = effect.get("f_low") or 0.0, effect.get("f_high")
    if low > 0:
        return f"With {confidence} confidence at least {low:.2%} of the tested outputs were trained on."
    if high is not None:
        detectable = effect.get("detectable_f")
        share = "no share at all" if detectable is None else f"a share of {detectable:.2%} or more"
        return (
            f"Bound: f below {high:.2%} ({confidence} confidence), if outputs that are used leave the trace "
            f"that they left in the surrogate model. With {finding.n:,} outputs the test finds {share} with "
            f"a probability of {POWER:.0%}."
        )
    needed = effect["detectable_effect"]
    assert needed is not None
    return (
        f"Nothing was found, and how much that means is unknown without a surrogate model: with "
        f"{finding.n:,} outputs the test finds (2·AUC − 1)·f ≥ {needed:.3g} with a probability of "
        f"{POWER:.0%}."
    )


def mean_lower_bound(values_N: np.ndarray, alpha: float) -> float:
    """Lower confidence bound at level 1 − alpha of the mean expectation of independent values in [0, 1].

    The smallest mean m against which betting does not win 1/alpha (Waudby-Smith & Ramdas 2023,
    arXiv:2010.09686), where a value v pays v / m. Holds in finite samples, and also if the expectations μᵢ
    differ: the product of 1 − f + f·μᵢ / m is at most 1 if the μᵢ average to m or less.
    """
    values, counts = np.unique(values_N, return_counts=True)
    shares_S1 = np.array(STAKES)[:, None]

    def log_capital(mean: float) -> float:
        logs = np.log1p(shares_S1 * (values / mean - 1)) @ counts
        return float(np.logaddexp.reduce(logs)) - math.log(len(STAKES))

    low, high, needed = 0.0, 1.0, -math.log(alpha)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if log_capital(middle) >= needed else (low, middle)
    return low


def _share_used(
    scores_NK1: np.ndarray, test: RankTest, parameters: Mapping[str, Any]
) -> dict[str, float | None]:
    """AUC and f with bounds: two-sided with a surrogate; without one, only f ≥ 2·AUC − 1."""
    alpha, surrogate = float(parameters.get("alpha", 0.05)), parameters.get("surrogate_auc")
    wins_N = delivered_win_rates(scores_NK1)
    side = alpha if surrogate is None else alpha / 2
    low = mean_lower_bound(wins_N, side)
    if surrogate is None:
        return {"auc_low": low, "f": None, "f_low": max(0.0, 2 * low - 1), "f_high": None}
    high = 1.0 - mean_lower_bound(1.0 - wins_N, side)
    least, most = sorted(surrogate) if isinstance(surrogate, list | tuple) else (surrogate, surrogate)

    def share(auc: float, of: float) -> float:
        return min(1.0, max(0.0, (2 * auc - 1) / (2 * of - 1)))

    return {
        "auc_low": low,
        "auc_high": high,
        "f": share(test.auc, (least + most) / 2),
        "f_low": share(low, most),
        "f_high": share(high, least),
    }


def _power(n: int, k: float, parameters: Mapping[str, Any]) -> dict[str, float | None]:
    """The smallest effect that the test detects, and its power."""
    alpha, surrogate = float(parameters.get("alpha", 0.05)), parameters.get("surrogate_auc")
    smallest = detectable_effect(n, k, alpha, POWER)
    if surrogate is None:
        return {"detectable_effect": smallest}
    auc = min(surrogate) if isinstance(surrogate, list | tuple) else surrogate
    share, hard = float(parameters.get("share", 0.05)), float(parameters.get("hard", 1000.0))
    detectable_share = smallest / (2 * auc - 1)
    return {
        "detectable_effect": smallest,
        "detectable_f": detectable_share if detectable_share <= 1 else None,
        "power": power_of_e(share, n, k, auc, hard),
        "power_share": share,
    }


def _why_none(transcript: pa.Table, matrix: ScoreMatrix) -> str:
    """Why no output can be ranked."""
    delivered = int((transcript["draw"].to_numpy() == 0).sum())
    resampled = len(transcript) - delivered
    if not delivered or not resampled:
        present = "resamples but no delivered outputs" if resampled else "delivered outputs but no resamples"
        return f"there are {present}; the test takes both, for the same prompts"
    if any(matrix.unscored):
        return (
            "no delivered output and its resamples have finite scores: the suspect gives log-probabilities "
            "that are missing or infinite"
        )
    return "no delivered output has a resample of its own (the ids do not match)"


def _not_run(parameters: Mapping[str, Any], reason: str) -> Finding:
    return Finding(NAME, LEVEL, NULL, n=0, rivals=RIVALS, parameters=dict(parameters), reason=reason)


def _series(scores_NK1: np.ndarray, log_e_N: np.ndarray) -> dict[str, list[float]]:
    """Series for the report: log10 E after each output, and a histogram of the ranks."""
    points = np.unique(np.linspace(0, len(log_e_N) - 1, min(CURVE_POINTS, len(log_e_N))).round().astype(int))
    bins = int(resample_counts(scores_NK1).max()) + 1
    histogram = np.histogram(mid_ranks(scores_NK1), bins=bins, range=(0.0, 1.0))[0]
    return {
        "outputs": (points + 1.0).tolist(),
        "log10_e": (log_e_N[points] / math.log(10)).tolist(),
        "rank_counts": histogram.astype(float).tolist(),
    }
