"""Watermark detection, with the exact null distribution of the score.

Every pair of window and token counts once, however often it occurs: under a random key its score is one draw,
and counting it twice would make chance look like a mark (Fernandez et al. 2023, "Three Bricks to Consolidate
Watermarks", arXiv:2308.00113, section III; Kirchenbauer et al. 2023, section 4.1). The scores of different
pairs are independent if the key is independent of the text, so the tails below are exact for any text.

Shapes: N pairs, W tokens of a window, T tokens of a text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import gammainccinv, gammaincinv

from stillhouse.stats import (
    binomial_log_e,
    binomial_upper,
    clopper_pearson,
    e_from_log,
    gamma_log_e,
    gamma_upper,
)
from stillhouse.watermark.marks import Mark


@dataclass(frozen=True)
class Pairs:
    """Tokens with the windows before them, in the order in which they first occur."""

    windows_NW: np.ndarray
    tokens_N: np.ndarray
    repeated: int = 0
    """Repetitions of earlier pairs that were removed."""

    def __len__(self) -> int:
        return len(self.tokens_N)


@dataclass(frozen=True)
class Detection:
    """The evidence for a key's mark in a set of pairs."""

    pairs: int
    mean: float
    """Mean score: green share, mean exponential score or share of layers won; NaN without pairs."""
    expected: float
    """The mean under the null: γ, 1, or ½."""
    z: float
    """Standard deviations above ``expected``, for orientation; the p-value is not computed from it."""
    p_value: float
    """The exact tail."""
    log_e: float
    """Natural logarithm of the e-value."""

    @property
    def e_value(self) -> float:
        return e_from_log(self.log_e)


def detect(mark: Mark, texts: Iterable[Sequence[int]]) -> Detection:
    """Tests whether texts, each as token ids of the marked model's tokenizer, carry ``mark``.

    Pass answers without their prompts: only answers are marked, from token number ``window`` on.
    """
    pairs = distinct_pairs(text_pairs(texts, mark.window))
    return detection_from_scores(mark, mark.scores(pairs.windows_NW, pairs.tokens_N))


def text_pairs(texts: Iterable[Sequence[int]], window: int) -> Pairs:
    """Every token with ``window`` tokens before it in its own text, repetitions included."""
    views = [
        np.lib.stride_tricks.sliding_window_view(np.asarray(text, np.int64), window + 1)
        for text in texts
        if len(text) > window
    ]
    rows = np.concatenate(views) if views else np.zeros((0, window + 1), np.int64)
    return Pairs(rows[:, :-1], rows[:, -1])


def distinct_pairs(pairs: Pairs) -> Pairs:
    """The pairs without repetitions."""
    rows = np.column_stack([pairs.windows_NW, pairs.tokens_N])
    order = np.lexsort(rows.T)  # stable: the first of equal rows comes first
    new = np.ones(len(rows), bool)
    new[1:] = (rows[order[1:]] != rows[order[:-1]]).any(1)
    first = np.sort(order[new])
    return Pairs(rows[first, :-1], rows[first, -1], pairs.repeated + len(rows) - len(first))


def detection_from_scores(mark: Mark, scores_N: np.ndarray) -> Detection:
    """The detection result for the scores of distinct pairs."""
    n, total = len(scores_N), float(scores_N.sum())
    expected, deviation = _null(mark)
    scale = mark.depth if mark.scheme == "tournament" else 1
    mean = total / n / scale if n else float("nan")
    return Detection(
        pairs=n,
        mean=mean,
        expected=expected,
        z=(mean - expected) / deviation * n**0.5 if n else 0.0,
        p_value=float(_tail(mark, total, n)),
        log_e=float(_log_e(mark, total, n)),
    )


def running_log_e(mark: Mark, scores_N: np.ndarray) -> np.ndarray:
    """The natural logarithm of the e-value [N] after each pair."""
    return _log_e(mark, np.cumsum(scores_N), np.arange(1, len(scores_N) + 1))


def interval(mark: Mark, scores_N: np.ndarray, confidence: float) -> tuple[float, float]:
    """An exact, equal-tailed interval for the mean score, as if the scores were independent.

    Clopper & Pearson 1934 for shares. For the gumbel mark it is the interval for the mean of exponential
    variables, which describes the scores only without a mark.
    """
    n, total = len(scores_N), float(scores_N.sum())
    if mark.scheme == "gumbel":
        tail = (1 - confidence) / 2
        return total / float(gammainccinv(n, tail)), total / float(gammaincinv(n, tail))
    trials = n * mark.depth if mark.scheme == "tournament" else n
    return clopper_pearson(int(total), trials, confidence) if trials else (0.0, 1.0)


def _null(mark: Mark) -> tuple[float, float]:
    """Mean and standard deviation of one pair's (scaled) score under the null."""
    if mark.scheme == "kgw":
        return mark.gamma, (mark.gamma * (1 - mark.gamma)) ** 0.5
    return (1.0, 1.0) if mark.scheme == "gumbel" else (0.5, 0.5 / mark.depth**0.5)


def _tail(mark: Mark, total: float, n: int) -> np.ndarray:
    if mark.scheme == "gumbel":
        return gamma_upper(total, n)
    return binomial_upper(total, *_trials(mark, n))


def _log_e(mark: Mark, total: float | np.ndarray, n: int | np.ndarray) -> np.ndarray:
    if mark.scheme == "gumbel":
        return gamma_log_e(total, n)
    return binomial_log_e(total, *_trials(mark, n))


def _trials(mark: Mark, n: int | np.ndarray) -> tuple[int | np.ndarray, float]:
    """Number and success probability of the Bernoulli trials behind n scores (kgw, tournament)."""
    return (n, mark.gamma) if mark.scheme == "kgw" else (n * mark.depth, 0.5)
