"""Where a delivered output ranks among its resamples, and how surprising all the ranks together are.

Everything here is conditional on the scores as a set: under the null the label "delivered" could as well be
on any of the K + 1 texts, each with chance 1 / (K + 1), independently from item to item. That is all that is
assumed; ties, outliers and the scores' distribution do not matter.

Shapes: N items, K resamples of each. NaN is "there is no such score": an item may have fewer resamples.
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
"""Values that the sum may take, up to which its distribution is computed (2 million items with K = 4)."""
STEEPEST = 30.0
"""Largest tilt. The sum moves in whole numbers, so more changes nothing that a float can hold."""
_PAIRS = 2**23
BETS = (2.0, 12.0)
"""What :func:`payoffs` bets on: that a delivered output scores like the best of so many draws. The first pays
by rank, for faint traces (AUC .67 and below); the second mostly for being first, for outputs that are
remembered (AUC .92). Staked in part they cover what lies between."""


@dataclass(frozen=True)
class RankTest:
    """The permutation test of Σ c, c = resamples that the delivered output beats less those that beat it."""

    n: int
    total: int
    """Σ c, an integer; 0 is what the null expects."""
    z: float
    """Σ c over its exact conditional standard deviation."""
    auc: float
    """Mean chance that a delivered output outranks one of its resamples; ties count a half."""
    p_exact: float | None
    """P(Σ c ≥ what was seen) over all ways to place the labels; None where there are too many values."""
    p_bound: float
    """Chernoff's bound of the same probability: never too small, a few times too large."""
    p_normal: float
    """The normal approximation, asymptotic."""

    @property
    def p(self) -> float:
        """The exact p-value, or its bound."""
        return self.p_bound if self.p_exact is None else self.p_exact


def signed_wins(scores_NK1: np.ndarray) -> np.ndarray:
    """For each text the others of its item that it beats less those that beat it, [N, K + 1].

    A column may be NaN: then its value is 0 and means nothing.
    """
    below_NK1, equal_NK1 = _below_and_equal(scores_NK1)
    there_NK1 = ~np.isnan(scores_NK1)
    return np.where(there_NK1, 2 * below_NK1 + equal_NK1 - there_NK1.sum(1, keepdims=True), 0)


def _below_and_equal(scores_NK1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each text how many of its item have a lower score, and how many the same (itself counts)."""
    scores_NK1 = np.asarray(scores_NK1, np.float64)
    below_NK1, equal_NK1 = np.empty(scores_NK1.shape, np.int64), np.empty(scores_NK1.shape, np.int64)
    step = max(1, _PAIRS // scores_NK1.shape[1] ** 2)
    for start in range(0, len(scores_NK1), step):
        part = scores_NK1[start : start + step]
        below_NK1[start : start + step] = (part[:, :, None] > part[:, None, :]).sum(2)
        equal_NK1[start : start + step] = (part[:, :, None] == part[:, None, :]).sum(2)
    return below_NK1, equal_NK1


def resample_counts(scores_NK1: np.ndarray) -> np.ndarray:
    """K of each item [N]: its resamples that have a score."""
    return np.count_nonzero(~np.isnan(scores_NK1), axis=1) - 1


def usable(scores_NK1: np.ndarray) -> np.ndarray:
    """The items whose delivered output and at least one resample have a score."""
    return scores_NK1[~np.isnan(scores_NK1[:, 0]) & (resample_counts(scores_NK1) > 0)]


def mid_ranks(scores_NK1: np.ndarray) -> np.ndarray:
    """u [N] in (0, 1) of the delivered outputs, ½ + c / (2 (K + 1)): a mean of ½ under the null."""
    scores_NK1 = _checked(scores_NK1)
    return 0.5 + signed_wins(scores_NK1)[:, 0] / (2.0 * (resample_counts(scores_NK1) + 1))


def odds(k: int, best_of: float) -> np.ndarray:
    """What a fair bet pays for a stake of 1 where the delivered output outranks r = 0 … k resamples, [k + 1].

    The bet is an alternative of Lehmann's ("The power of rank tests", 1953): the delivered output scores
    like the best of ``best_of`` draws, and so outranks a resample with chance best_of / (best_of + 1). Under
    the null each rank has chance 1 / (k + 1), and the odds' mean is 1.
    """
    from scipy.special import gammaln

    r = np.arange(k + 1)
    log_chance = gammaln(r + best_of) - gammaln(r + 1) + gammaln(k + 1) - gammaln(k + best_of + 1)
    return (k + 1) * best_of * np.exp(log_chance)


def payoffs(scores_NK1: np.ndarray, bets: Sequence[float] = BETS) -> np.ndarray:
    """What bets pay, for a stake of 1, if a text is the delivered one: [bets, N, K + 1]; see :func:`odds`.

    A text that ties with others gets the mean over the ranks that they share. So, given the scores of an item
    as a set, the mean over its texts is exactly 1, and no seed breaks ties that somebody could choose. Absent
    texts have 0.
    """
    scores_NK1 = _checked(scores_NK1)
    below_NK1, equal_NK1 = _below_and_equal(scores_NK1)
    k_N = resample_counts(scores_NK1)
    paid_BNK1 = np.empty((len(bets), *scores_NK1.shape))
    for k in np.unique(k_N).tolist():
        rows = k_N == k
        low, ties = below_NK1[rows], np.maximum(equal_NK1[rows], 1)
        for bet, best_of in enumerate(bets):
            up_to = np.concatenate([[0.0], np.cumsum(odds(k, best_of))])
            paid_BNK1[bet, rows] = (up_to[low + ties] - up_to[low]) / ties
    return np.where(np.isnan(scores_NK1), 0.0, paid_BNK1)


def log_e_process(scores_NK1: np.ndarray, bets: Sequence[float] = BETS) -> np.ndarray:
    """ln E [N] of the running e-process that bets on the delivered outputs' ranks."""
    return log_betting_process(payoffs(scores_NK1, bets)[:, :, 0])


def delivered_win_rates(scores_NK1: np.ndarray) -> np.ndarray:
    """The share of its resamples that each delivered output outranks [N], ties by half; its mean is AUC."""
    return 0.5 + signed_wins(scores_NK1)[:, 0] / (2.0 * resample_counts(scores_NK1))


def rank_test(scores_NK1: np.ndarray, *, lattice: int = LATTICE) -> RankTest:
    """Do delivered outputs (column 0) rank above their resamples? One-sided.

    Args:
        scores_NK1: column 0 and at least one other column of every row are not NaN. Infinities are scores.
        lattice: values of the sum beyond which Chernoff's bound stands for the exact p-value.
    """
    scores_NK1 = _checked(scores_NK1)
    wins_NK1, k_N = signed_wins(scores_NK1), resample_counts(scores_NK1)
    total = int(wins_NK1[:, 0].sum())
    variance = float(((wins_NK1**2).sum(1) / (k_N + 1)).sum())  # absent texts have c = 0
    null = _Null(wins_NK1, ~np.isnan(scores_NK1), total)
    z = total / math.sqrt(variance) if variance else 0.0
    return RankTest(
        n=len(scores_NK1),
        total=total,
        z=z,
        auc=float((0.5 + wins_NK1[:, 0] / (2.0 * k_N)).mean()),
        p_exact=null.upper_tail() if null.values <= lattice else None,
        p_bound=null.chernoff(),
        p_normal=max(SMALLEST, _normal_upper(z)),
    )


def label_permutation_p(values_NK1: np.ndarray, present_NK1: np.ndarray, *, lattice: int = LATTICE) -> float:
    """P(Σ values of the labelled texts ≥ that of column 0), labels placed at random: the exact p-value.

    Args:
        values_NK1: whole numbers, whatever statistic they are.
        present_NK1: which texts there are.
        lattice: values of the sum beyond which Chernoff's bound stands for it.
    """
    null = _Null(values_NK1, present_NK1, int(values_NK1[:, 0].sum()))
    return null.upper_tail() if null.values <= lattice else null.chernoff()


class _Null:
    """The distribution of Σ c when every label is placed uniformly: a sum of independent lattice variables.

    c is any whole number that a text has. Kept as D kinds of items (the values that c may take) with how
    often each occurs: for ranks without ties there is one for each K. All is computed under the distribution
    tilted by exp(tilt · Σ c), whose mean is ``total``.
    """

    def __init__(self, wins_NK1: np.ndarray, present_NK1: np.ndarray, total: int) -> None:
        absent = np.iinfo(np.int64).max
        values_NK1 = np.sort(np.where(present_NK1, wins_NK1, absent), axis=1)
        self.kinds_DK1, self.counts_D = np.unique(values_NK1, axis=0, return_counts=True)
        self.present_DK1 = self.kinds_DK1 < absent
        lowest_D = self.kinds_DK1[:, 0]
        self.kinds_DK1 = np.where(self.present_DK1, self.kinds_DK1, lowest_D[:, None])
        offsets_DK1 = self.kinds_DK1 - lowest_D[:, None]
        self.step = max(1, int(np.gcd.reduce(offsets_DK1, axis=None)))
        self.places_DK1 = offsets_DK1 // self.step
        self.lowest = int(lowest_D @ self.counts_D)
        self.values = 1 + int(self.places_DK1.max(1) @ self.counts_D)
        self.total = total
        self.tilt = self._saddle_point()

    def chernoff(self) -> float:
        """exp(ln E[exp(tilt Σ c)] − tilt · total) ≥ P(Σ c ≥ total); the tilt that makes it least."""
        return _probability(self._log_moment() - self.tilt * self.total)

    def upper_tail(self) -> float:
        """P(Σ c ≥ total), by convolution of the tilted distributions, tilted back.

        Tilting puts the mass where the tail begins, so the rounding of fast convolutions, about 1e-16 of the
        largest probability, is as small beside the tail as beside the whole.
        """
        masses = [
            _power(np.bincount(places, weights), count)
            for places, weights, count in zip(
                self.places_DK1, self._weights(self.tilt), self.counts_D.tolist(), strict=True
            )
        ]
        mass = _convolve_all(masses)
        beyond = self.lowest + self.step * np.arange(len(mass), dtype=np.float64) - self.total
        tail = float(mass[beyond >= 0] @ np.exp(-self.tilt * beyond[beyond >= 0]))
        return _probability(self._log_moment() - self.tilt * self.total + math.log(max(tail, SMALLEST)))

    def _log_moment(self) -> float:
        """ln E[exp(tilt · Σ c)]."""
        highest_D = self.kinds_DK1.max(1)
        powers_DK1 = np.exp(self.tilt * (self.kinds_DK1 - highest_D[:, None])) * self.present_DK1
        means_D = powers_DK1.sum(1) / self.present_DK1.sum(1)
        return float(self.counts_D @ (self.tilt * highest_D + np.log(means_D)))

    def _weights(self, tilt: float) -> np.ndarray:
        """Probabilities [D, K + 1] of an item's values under a tilt."""
        powers_DK1 = np.exp(tilt * (self.kinds_DK1 - self.kinds_DK1.max(1, keepdims=True))) * self.present_DK1
        return powers_DK1 / powers_DK1.sum(1, keepdims=True)

    def _excess(self, tilt: float) -> float:
        """The mean of Σ c under a tilt, less ``total``."""
        return float(self.counts_D @ (self._weights(tilt) * self.kinds_DK1).sum(1)) - self.total

    def _saddle_point(self) -> float:
        """The tilt ≥ 0 under which ``total`` is the mean, as far as there is one."""
        from scipy.optimize import brentq

        if self._excess(0.0) >= 0:
            return 0.0
        if self._excess(STEEPEST) <= 0:
            return STEEPEST
        return float(brentq(self._excess, 0.0, STEEPEST, xtol=1e-9))  # pyright: ignore[reportArgumentType]


def _probability(log: float) -> float:
    return min(1.0, max(SMALLEST, math.exp(min(0.0, log))))


def _power(mass: np.ndarray, count: int) -> np.ndarray:
    """The distribution of a sum of ``count`` independent ones, by repeated squaring."""
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
    """The shortest two first."""
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
