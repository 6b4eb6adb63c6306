"""Upper tails of the distributions that counts and sums have under a null, and bounds for a rate.

Tails are of the whole distribution, never of an approximation, and keep their relative accuracy down to the
smallest number that a float holds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

SMALLEST = float(np.finfo(np.float64).tiny)
"""The smallest p-value that is ever reported: below it a float cannot tell it from 0."""


def binomial_upper(k: ArrayLike, n: ArrayLike, p: ArrayLike) -> np.ndarray:
    """P(X ≥ k) for X ~ Binomial(n, p), as the regularised incomplete beta function I_p(k, n − k + 1)."""
    from scipy.special import betainc

    k, n, p = np.asarray(k, np.float64), np.asarray(n, np.float64), np.asarray(p, np.float64)
    inner = betainc(np.maximum(k, 1.0), np.maximum(n - k + 1.0, 1.0), p)
    return np.where(k <= 0, 1.0, np.where(k > n, 0.0, inner))


def gamma_upper(total: ArrayLike, n: ArrayLike) -> np.ndarray:
    """P(X ≥ total) for X the sum of n independent Exponential(1) variables."""
    from scipy.special import gammaincc

    return gammaincc(np.asarray(n, np.float64), np.maximum(np.asarray(total, np.float64), 0.0))


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval for a rate of which k in n were seen (Clopper & Pearson 1934); both sides equal.

    With k = 0 it is [0, 1 − (α/2)^(1/n)]: no exception in 300 trials still leaves a rate of 1%.
    """
    from scipy.special import betaincinv

    assert 0 <= k <= n and n > 0
    half = (1.0 - confidence) / 2
    low = float(betaincinv(k, n - k + 1, half)) if k else 0.0
    high = float(betaincinv(k + 1, n - k, 1.0 - half)) if k < n else 1.0
    return low, high
