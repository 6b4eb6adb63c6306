"""Exchangeable resamples: does the suspect prefer what was delivered to what might as well have been? (L2)

For each delivered output the archived teacher draws K fresh ones for the same prompt and settings, which
nobody is shown. If the suspect was not trained on the delivered output, nothing that it learned elsewhere
tells the delivered one from the others: style, topic and organic exposure cancel. So the rank of the
delivered output among the K + 1 is uniform, by construction and not by a model of the world.

What it does not tell: how the outputs came to the suspect. Whoever published the log, or shared the account,
leaves the same trace.
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
    log_e_process,
    mid_ranks,
    p_from_e,
    power_of_e,
    rank_test,
    resample_counts,
    rounds_until,
    usable_items,
)
from stillhouse.trace.detectors.exchangeable.assumptions import assumptions
from stillhouse.trace.detectors.exchangeable.observe import FACTS
from stillhouse.trace.detectors.exchangeable.scores import (
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
DRAWN = 300
"""Points of a curve in the report."""
POWER = 0.8
"""The power that `detectable_f` means."""


def judge(transcript: pa.Table, parameters: Mapping[str, Any]) -> Finding:
    """The permutation test, the e-process and what they say about f, from the scores.

    Args:
        transcript: columns id, draw (0 delivered, 1 … K resamples), text, and those of the score; one row a
            text, items in the order in which they were asked.
        parameters: ``score`` (a name in :data:`.scoring.SCORES`); ``alpha``, one minus the confidence of
            bounds (0.05); ``surrogate_auc``, a number or [low, high]: the chance that an output outranks its
            resample in a model that was trained on it; ``stop_at``: E at which to stop; ``share`` and
            ``hard``: the share of the log and the E that `power` is about (0.05, 1000).

    Raises:
        UsageError: there is no such score, or the surrogate tells nothing apart.
    """
    score = find_score(str(parameters.get("score", "loglik")))
    if (surrogate := parameters.get("surrogate_auc")) is not None and np.min(surrogate) <= 0.5:
        raise UsageError(
            f"surrogate_auc {surrogate} is not above 0.5: one that tells nothing apart bounds nothing",
            hint="Leave it out, or choose a score that works on the surrogate.",
        )
    facts = json.loads((transcript.schema.metadata or {}).get(FACTS, b"{}"))
    if missing := missing_columns(transcript, score):
        return _not_run(
            parameters, f"the transcript has no values of {', '.join(missing)}; it takes {score.needs}"
        )
    arranged = score_matrix(transcript, score)
    scores_NK1 = usable_items(arranged.scores_NK1)
    asked = len(scores_NK1)
    if not asked:
        return _not_run(parameters, _why_none(transcript, arranged))
    log_e_N = log_e_process(scores_NK1)
    stop_at = parameters.get("stop_at")
    stopped = None if stop_at is None else rounds_until(log_e_N, float(stop_at))
    n = stopped or len(log_e_N)
    scores_NK1, log_e_N = scores_NK1[:n], log_e_N[:n]
    test = rank_test(scores_NK1)
    k = float(np.mean(resample_counts(scores_NK1)))
    # Whoever may stop early has p from the e-process: the permutation p-value is for a size fixed before.
    p_value = test.p if stop_at is None else max(SMALLEST, p_from_e(e_from_log(log_e_N.max())))
    log_size = facts.get("log_size") or asked
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
        statistic=f"z of the ranks of the delivered outputs among their resamples, by {score.words}",
        value=test.z,
        p_value=p_value,
        e_value=e_from_log(log_e_N[-1]),
        effect=effect,
        assumptions=assumptions(transcript, arranged, facts, test, early=stop_at is not None),
        rivals=RIVALS,
        parameters=dict(parameters),
        series=_series(scores_NK1, log_e_N),
    )


def in_words(finding: Finding) -> str:
    """What a finding says about f in a sentence or two; never that the suspect is innocent."""
    effect = finding.effect
    if not finding.ran:
        return f"The test could not run: {finding.reason}. That says nothing about the suspect."
    confidence = f"{1 - float(finding.parameters.get('alpha', 0.05)):.0%}"
    low, high = effect.get("f_low") or 0.0, effect.get("f_high")
    if low > 0:
        return f"With {confidence} confidence at least {low:.2%} of the tested outputs were trained on."
    if high is not None:
        detectable = effect.get("detectable_f")
        told = "no share at all" if detectable is None else f"a share of {detectable:.2%} or more"
        return (
            f"Bound: f below {high:.2%} ({confidence} confidence), if outputs that are used leave the trace "
            f"that they left in the surrogate model. With {finding.n:,} outputs the test finds {told} with "
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
    """A lower bound, with confidence 1 − alpha, of the average expectation of independent values in [0, 1].

    The smallest mean against which betting does not win 1/alpha (Waudby-Smith & Ramdas 2023,
    arXiv:2010.09686), where a value v pays v / m. Holds in finite samples, and also where the expectations
    differ: the product of 1 − f + f·μᵢ / m is at most 1 when the μᵢ average to m or less.
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
    """AUC and f with their bounds: two-sided with a surrogate; without one, f ≥ 2·AUC − 1 alone."""
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
    """What the test could have found."""
    alpha, surrogate = float(parameters.get("alpha", 0.05)), parameters.get("surrogate_auc")
    smallest = detectable_effect(n, k, alpha, POWER)
    if surrogate is None:
        return {"detectable_effect": smallest}
    auc = min(surrogate) if isinstance(surrogate, list | tuple) else surrogate
    share, hard = float(parameters.get("share", 0.05)), float(parameters.get("hard", 1000.0))
    found = smallest / (2 * auc - 1)
    return {
        "detectable_effect": smallest,
        "detectable_f": found if found <= 1 else None,
        "power": power_of_e(share, n, k, auc, hard),
        "power_share": share,
    }


def _why_none(transcript: pa.Table, arranged: ScoreMatrix) -> str:
    """Why no item can be ranked."""
    delivered = int((transcript["draw"].to_numpy() == 0).sum())
    resampled = len(transcript) - delivered
    if not delivered or not resampled:
        there = "resamples but no delivered outputs" if resampled else "delivered outputs but no resamples"
        return f"there are {there}; the test takes both, for the same prompts"
    if any(arranged.unscored):
        return (
            "no delivered output and its resamples have finite scores: the suspect gives log-probabilities "
            "that are missing or infinite"
        )
    return "no delivered output has a resample of its own (the ids do not match)"


def _not_run(parameters: Mapping[str, Any], reason: str) -> Finding:
    return Finding(NAME, LEVEL, NULL, n=0, rivals=RIVALS, parameters=dict(parameters), reason=reason)


def _series(scores_NK1: np.ndarray, log_e_N: np.ndarray) -> dict[str, list[float]]:
    """The growth of the evidence, and how often each tenth of the ranks came up."""
    points = np.unique(np.linspace(0, len(log_e_N) - 1, min(DRAWN, len(log_e_N))).round().astype(int))
    bins = int(resample_counts(scores_NK1).max()) + 1
    histogram = np.histogram(mid_ranks(scores_NK1), bins=bins, range=(0.0, 1.0))[0]
    return {
        "outputs": (points + 1.0).tolist(),
        "log10_e": (log_e_N[points] / math.log(10)).tolist(),
        "rank_counts": histogram.astype(float).tolist(),
    }
