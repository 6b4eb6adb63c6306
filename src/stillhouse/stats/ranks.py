"""Rank test of delivered outputs against their resamples, exact under permutation, and its e-process.

Everything here is conditional on the scores of an item as a set: under the null the label "delivered" is on
each of its K + 1 texts with chance 1 / (K + 1), independently of other items. This is the only assumption;
ties, outliers and the distribution of the scores do not matter.

Shapes: N items, K resamples of each, D distinct items. A NaN score is absent: items may have fewer resamples.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stillhouse.stats.evalues import log_betting_process
from stillhouse.stats.tails import SMALLEST

LATTICE = 2**23
"""Largest number of values of the sum for which its distribution is computed (2 million items with K = 4)."""
STEEPEST = 30.0
"""Largest tilt. The sum moves in whole numbers, so a larger one changes nothing that a float can hold."""
_COMPARISONS = 2**23
"""Comparisons of two scores in memory at once."""
BETS = (2.0, 12.0)
"""Alternatives of :func:`rank_payoffs`: a delivered output scores like the best of so many draws. The first
pays by rank, for faint traces (AUC .67 and below); the second mostly for first places, for outputs that are
remembered (AUC .92). Partial stakes on both cover what lies between."""


@dataclass(frozen=True)
class RankTest:
    """The permutation test of Σ c, c = resamples that the delivered output beats minus those that beat it."""

    n: int
    total: int
    """Σ c, an integer; 0 is its mean under the null."""
    z: float
    """Σ c over its exact conditional standard deviation."""
    auc: float
    """Mean chance that a delivered output outranks one of its resamples; ties count a half."""
    p_exact: float | None
    """P(Σ c ≥ observed) over all ways to place the labels; None if there are too many values."""
    p_bound: float
    """Chernoff's bound on the same probability: never too small, a few times too large."""
    p_normal: float
    """The normal approximation, asymptotic."""

    @property
    def p(self) -> float:
        """The exact p-value if it was computed, else its bound."""
        return self.p_bound if self.p_exact is None else self.p_exact


def signed_wins(scores_NK1: np.ndarray) -> np.ndarray:
    """For each text the others of its item that it beats minus those that beat it, [N, K + 1].

    The value of an absent text (NaN) is 0 and has no meaning.
    """
    below_NK1, equal_NK1 = _below_and_equal(scores_NK1)
    present_NK1 = ~np.isnan(scores_NK1)
    return np.where(present_NK1, 2 * below_NK1 + equal_NK1 - present_NK1.sum(1, keepdims=True), 0)


def _below_and_equal(scores_NK1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each text how many of its item have a lower score, and how many the same (including itself)."""
    scores_NK1 = np.asarray(scores_NK1, np.float64)
    below_NK1, equal_NK1 = np.empty(scores_NK1.shape, np.int64), np.empty(scores_NK1.shape, np.int64)
    step = max(1, _COMPARISONS // scores_NK1.shape[1] ** 2)
    for start in range(0, len(scores_NK1), step):
        chunk = scores_NK1[start : start + step]
        below_NK1[start : start + step] = (chunk[:, :, None] > chunk[:, None, :]).sum(2)
        equal_NK1[start : start + step] = (chunk[:, :, None] == chunk[:, None, :]).sum(2)
    return below_NK1, equal_NK1


def resample_counts(scores_NK1: np.ndarray) -> np.ndarray:
    """K of each item [N]: its resamples with a score."""
    return np.count_nonzero(~np.isnan(scores_NK1), axis=1) - 1


def usable_items(scores_NK1: np.ndarray) -> np.ndarray:
    """The rows whose delivered output and at least one resample have a score."""
    return scores_NK1[~np.isnan(scores_NK1[:, 0]) & (resample_counts(scores_NK1) > 0)]


def mid_ranks(scores_NK1: np.ndarray) -> np.ndarray:
    """u [N] in (0, 1) of the delivered outputs, ½ + c / (2 (K + 1)): a mean of ½ under the null."""
    scores_NK1 = _checked(scores_NK1)
    return 0.5 + signed_wins(scores_NK1)[:, 0] / (2.0 * (resample_counts(scores_NK1) + 1))


def rank_odds(k: int, best_of: float) -> np.ndarray:
    """What a fair bet pays for a stake of 1 if the delivered output outranks r = 0 … k resamples, [k + 1].

    The bet is on an alternative of Lehmann's ("The power of rank tests", 1953): the delivered output scores
    like the best of ``best_of`` draws, and so outranks a resample with chance best_of / (best_of + 1). Under
    the null each rank has chance 1 / (k + 1), and the mean of the odds is 1.
    """
    from scipy.special import gammaln

    r = np.arange(k + 1)
    log_chance = gammaln(r + best_of) - gammaln(r + 1) + gammaln(k + 1) - gammaln(k + best_of + 1)
    return (k + 1) * best_of * np.exp(log_chance)


def rank_payoffs(scores_NK1: np.ndarray, bets: Sequence[float] = BETS) -> np.ndarray:
    """Payoffs [bets, N, K + 1] of a stake of 1 if a text is the delivered one; see :func:`rank_odds`.

    A text that ties with others gets the mean over their shared ranks. So, given the scores of an item as a
    set, the mean over its texts is exactly 1, and no choice of a seed breaks ties. Absent texts have 0.
    """
    scores_NK1 = _checked(scores_NK1)
    below_NK1, equal_NK1 = _below_and_equal(scores_NK1)
    k_N = resample_counts(scores_NK1)
    paid_BNK1 = np.empty((len(bets), *scores_NK1.shape))
    for k in np.unique(k_N).tolist():
        rows = k_N == k
        low, ties = below_NK1[rows], np.maximum(equal_NK1[rows], 1)
        for bet, best_of in enumerate(bets):
            cumulative = np.concatenate([[0.0], np.cumsum(rank_odds(k, best_of))])
            paid_BNK1[bet, rows] = (cumulative[low + ties] - cumulative[low]) / ties
    return np.where(np.isnan(scores_NK1), 0.0, paid_BNK1)


def log_rank_e_process(scores_NK1: np.ndarray, bets: Sequence[float] = BETS) -> np.ndarray:
    """ln E [N] of the running e-process that bets on the delivered outputs' ranks."""
    return log_betting_process(rank_payoffs(scores_NK1, bets)[:, :, 0])


def delivered_win_rates(scores_NK1: np.ndarray) -> np.ndarray:
    """The share of its resamples that each delivered output outranks [N], ties by half; its mean is AUC."""
    return 0.5 + signed_wins(scores_NK1)[:, 0] / (2.0 * resample_counts(scores_NK1))


def rank_test(scores_NK1: np.ndarray, *, lattice: int = LATTICE) -> RankTest:
    """Tests whether delivered outputs (column 0) rank above their resamples; one-sided.

    Args:
        scores_NK1: column 0 and at least one other column of every row are not NaN. Infinities are scores.
        lattice: with more values of the sum than this, Chernoff's bound replaces the exact p-value.
    """
    scores_NK1 = _checked(scores_NK1)
    wins_NK1, k_N = signed_wins(scores_NK1), resample_counts(scores_NK1)
    total = int(wins_NK1[:, 0].sum())
    variance = float(((wins_NK1**2).sum(1) / (k_N + 1)).sum())  # absent texts have c = 0
    null = _NullDistribution(wins_NK1, ~np.isnan(scores_NK1), total)
    z = total / math.sqrt(variance) if variance else 0.0
    return RankTest(
        n=len(scores_NK1),
        total=total,
        z=z,
        auc=float((0.5 + wins_NK1[:, 0] / (2.0 * k_N)).mean()),
        p_exact=null.upper_tail() if null.support <= lattice else None,
        p_bound=null.chernoff(),
        p_normal=max(SMALLEST, _normal_upper(z)),
    )


def label_permutation_p(values_NK1: np.ndarray, present_NK1: np.ndarray, *, lattice: int = LATTICE) -> float:
    """P(Σ values of the labelled texts ≥ that of column 0), labels placed at random: the exact p-value.

    Args:
        values_NK1: any statistic in whole numbers.
        present_NK1: True for texts that exist.
        lattice: with more values of the sum than this, Chernoff's bound replaces the exact p-value.
    """
    null = _NullDistribution(values_NK1, present_NK1, int(values_NK1[:, 0].sum()))
    return null.upper_tail() if null.support <= lattice else null.chernoff()


class _NullDistribution:
    """The distribution of Σ c when every label is placed uniformly: a sum of independent lattice variables.

    Any whole-number value c of each text will do. Items with the same values are counted, not repeated: D
    distinct rows of values (for ranks without ties one for each K). Everything is computed under the
    distribution tilted by exp(tilt · Σ c), whose mean is ``total``.
    """

    def __init__(self, wins_NK1: np.ndarray, present_NK1: np.ndarray, total: int) -> None:
        absent = np.iinfo(np.int64).max
        values_NK1 = np.sort(np.where(present_NK1, wins_NK1, absent), axis=1)
        self.values_DK1, self.counts_D = np.unique(values_NK1, axis=0, return_counts=True)
        self.present_DK1 = self.values_DK1 < absent
        lowest_D = self.values_DK1[:, 0]
        self.values_DK1 = np.where(self.present_DK1, self.values_DK1, lowest_D[:, None])
        offsets_DK1 = self.values_DK1 - lowest_D[:, None]
        self.step = max(1, int(np.gcd.reduce(offsets_DK1, axis=None)))
        self.steps_DK1 = offsets_DK1 // self.step
        self.lowest = int(lowest_D @ self.counts_D)
        self.support = 1 + int(self.steps_DK1.max(1) @ self.counts_D)
        self.total = total
        self.tilt = self._saddle_point()

    def chernoff(self) -> float:
        """exp(ln E[exp(tilt Σ c)] − tilt · total) ≥ P(Σ c ≥ total), at the tilt that minimises it."""
        return _probability(self._log_moment() - self.tilt * self.total)

    def upper_tail(self) -> float:
        """P(Σ c ≥ total), by convolution of the tilted distributions, tilted back.

        Tilting moves the mass to where the tail begins. The rounding of fast convolutions is about 1e-16 of
        the largest probability, so it is then as small relative to the tail as to the whole.
        """
        masses = [
            _power(np.bincount(steps, weights), count)
            for steps, weights, count in zip(
                self.steps_DK1, self._weights(self.tilt), self.counts_D.tolist(), strict=True
            )
        ]
        mass = _convolve_all(masses)
        beyond = self.lowest + self.step * np.arange(len(mass), dtype=np.float64) - self.total
        tail = float(mass[beyond >= 0] @ np.exp(-self.tilt * beyond[beyond >= 0]))
        return _probability(self._log_moment() - self.tilt * self.total + math.log(max(tail, SMALLEST)))

    def _log_moment(self) -> float:
        """ln E[exp(tilt · Σ c)]."""
        highest_D = self.values_DK1.max(1)
        powers_DK1 = np.exp(self.tilt * (self.values_DK1 - highest_D[:, None])) * self.present_DK1
        means_D = powers_DK1.sum(1) / self.present_DK1.sum(1)
        return float(self.counts_D @ (self.tilt * highest_D + np.log(means_D)))

    def _weights(self, tilt: float) -> np.ndarray:
        """Probabilities [D, K + 1] of the values of each distinct item under a tilt."""
        powers_DK1 = (
            np.exp(tilt * (self.values_DK1 - self.values_DK1.max(1, keepdims=True))) * self.present_DK1
        )
        return powers_DK1 / powers_DK1.sum(1, keepdims=True)

    def _excess(self, tilt: float) -> float:
        """The mean of Σ c under a tilt, minus ``total``."""
        return float(self.counts_D @ (self._weights(tilt) * self.values_DK1).sum(1)) - self.total

    def _saddle_point(self) -> float:
        """The tilt ≥ 0 under which ``total`` is the mean, between 0 and :data:`STEEPEST`."""
        from scipy.optimize import brentq

        if self._excess(0.0) >= 0:
            return 0.0
        if self._excess(STEEPEST) <= 0:
            return STEEPEST
        return float(brentq(self._excess, 0.0, STEEPEST, xtol=1e-9))  # pyright: ignore[reportArgumentType]


def _probability(log: float) -> float:
    return min(1.0, max(SMALLEST, math.exp(min(0.0, log))))


def _power(mass: np.ndarray, count: int) -> np.ndarray:
    """The distribution of a sum of ``count`` independent copies, by repeated squaring."""
    result = None
    while True:
        if count & 1:
            result = mass if result is None else _convolve(result, mass)
        count >>= 1
        if not count:
            assert result is not None
            return result
        mass = _convolve(mass, mass)


def _convolve_all(masses: list[np.ndarray]) -> np.ndarray:
    """The distribution of a sum of independent variables; convolves the two shortest first (cheapest)."""
    heap = [(len(mass), number, mass) for number, mass in enumerate(masses)]
    heapq.heapify(heap)
    number = len(heap)
    while len(heap) > 1:
        mass = _convolve(heapq.heappop(heap)[2], heapq.heappop(heap)[2])
        heapq.heappush(heap, (len(mass), number, mass))
        number += 1
    return heap[0][2]


def _convolve(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    if min(len(one), len(other)) < 64:
        return np.convolve(one, other)
    from scipy.fft import irfft, next_fast_len, rfft

    length = len(one) + len(other) - 1
    fast = next_fast_len(length, real=True)
    return np.maximum(irfft(rfft(one, fast) * rfft(other, fast), fast)[:length], 0.0)  # pyright: ignore


def _normal_upper(z: float) -> float:
    from scipy.special import ndtr

    return float(ndtr(-z))


def _checked(scores_NK1: np.ndarray) -> np.ndarray:
    scores_NK1 = np.asarray(scores_NK1, np.float64)
    assert scores_NK1.ndim == 2 and len(scores_NK1)
    assert not np.isnan(scores_NK1[:, 0]).any() and (resample_counts(scores_NK1) > 0).all()
    return scores_NK1
