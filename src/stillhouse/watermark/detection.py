"""Finding a mark in text, with the exact distribution of the count where there is none.

Every pair of window and token counts once, however often it comes: under a random key its score is one draw,
and counting it twice would make chance look like a mark (Fernandez et al. 2023, "Three Bricks to Consolidate
Watermarks", arXiv:2308.00113, section III; Kirchenbauer et al. 2023, section 4.1). The scores of different
pairs are independent under a key that is independent of the text, so the tails below are exact for any text.

Shapes: N pairs, W tokens of a window, T tokens of a text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, gammainccinv, gammaincinv

from stillhouse.stats import binomial_log_e, binomial_upper, e_from_log, gamma_log_e, gamma_upper
from stillhouse.watermark.marks import Mark


@dataclass(frozen=True)
class Pairs:
    """Tokens with the windows before them, each pair once, in the order in which they first came."""

    windows_NW: np.ndarray
    tokens_N: np.ndarray
    repeated: int = 0
    """Pairs that had come before and do not count."""

    def __len__(self) -> int:
        return len(self.tokens_N)


@dataclass(frozen=True)
class Detection:
    """What a key's mark shows in some pairs."""

    pairs: int
    mean: float
    """Mean score: the green share, the mean exponential score, the share of layers won; NaN of no pairs."""
    expected: float
    """The mean under the null: γ, 1, or ½."""
    z: float
    """Standard deviations above it, for orientation: the p-value does not come from it."""
    p_value: float
    """The exact tail."""
    log_e: float
    """Natural logarithm of the e-value."""

    @property
    def e_value(self) -> float:
        return e_from_log(self.log_e)


def detect(mark: Mark, texts: Iterable[Sequence[int]]) -> Detection:
    """Whether texts, each as token ids of the marked model's tokenizer, carry ``mark``.

    Prompts do not belong in it: the mark is in answers, from their token number ``window`` on.
    """
    pairs = distinct_pairs(text_pairs(texts, mark.window))
    return detection_from_scores(mark, mark.scores(pairs.windows_NW, pairs.tokens_N))


def text_pairs(texts: Iterable[Sequence[int]], window: int) -> Pairs:
    """Every token that has ``window`` tokens before it in its own text, repetitions included."""
    parts = [np.lib.stride_tricks.sliding_window_view(np.asarray(text, np.int64), window + 1)
             for text in texts if len(text) > window]  # fmt: skip
    rows = np.concatenate(parts) if parts else np.zeros((0, window + 1), np.int64)
    return Pairs(rows[:, :-1], rows[:, -1])


def distinct_pairs(pairs: Pairs) -> Pairs:
    """The same pairs without repetitions."""
    rows = np.column_stack([pairs.windows_NW, pairs.tokens_N])
    order = np.lexsort(rows.T)  # stable: the first of equal rows comes first
    new = np.ones(len(rows), bool)
    new[1:] = (rows[order[1:]] != rows[order[:-1]]).any(1)
    first = np.sort(order[new])
    return Pairs(rows[first, :-1], rows[first, -1], pairs.repeated + len(rows) - len(first))


def detection_from_scores(mark: Mark, scores_N: np.ndarray) -> Detection:
    """The evidence in the scores of distinct pairs."""
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


def _null(mark: Mark) -> tuple[float, float]:
    """Mean and standard deviation of one pair's (scaled) score where there is no mark."""
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
    """Coins that were thrown, and the chance of each."""
    return (n, mark.gamma) if mark.scheme == "kgw" else (n * mark.depth, 0.5)


def interval(mark: Mark, scores_N: np.ndarray, confidence: float) -> tuple[float, float]:
    """An exact interval for the mean of the scores, both sides equal, as if they were independent.

    Clopper & Pearson 1934 for shares; for the gumbel mark that of the mean of exponential variables, which
    its scores are without a mark only.
    """
    n, total, half = len(scores_N), float(scores_N.sum()), (1 - confidence) / 2
    if mark.scheme == "gumbel":
        return total / float(gammainccinv(n, half)), total / float(gammaincinv(n, half))
    trials = _trials(mark, n)[0]
    low = float(betaincinv(total, trials - total + 1, half)) if total else 0.0
    high = float(betaincinv(total + 1, trials - total, 1 - half)) if total < trials else 1.0
    return low, high
