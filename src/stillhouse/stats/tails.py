"""Upper tail probabilities of binomial counts and gamma sums, and e-values against the same nulls.

The nulls are those of the watermarks: binomial counts and sums of exponential variables. Arrays broadcast.
The probability of a possible outcome is never 0: below :data:`SMALLEST` it is :data:`SMALLEST`.

Shapes: N sums.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc, gammaincc, stdtr, xlogy

SMALLEST = float(np.finfo(np.float64).tiny)
"""The smallest p-value that is reported: the smallest normal float64."""
ALTERNATIVES = 12
"""Alternatives that are bet on, each half as far from the null as the one before; averaging over them costs
at most a factor of 12 against the best."""


def binomial_upper(k: ArrayLike, n: ArrayLike, p: float) -> np.ndarray:
    """P(X ≥ k) for X ~ Binomial(n, p): the regularised incomplete beta function I_p(k, n − k + 1)."""
    k, n = np.asarray(k, np.float64), np.asarray(n, np.float64)
    tail = betainc(np.maximum(k, 1), np.maximum(n - k + 1, 1), p)
    return np.where(k <= 0, 1.0, np.where(k > n, 0.0, np.maximum(tail, SMALLEST)))


def gamma_upper(total: ArrayLike, n: ArrayLike) -> np.ndarray:
    """P(X ≥ total) for X the sum of n independent exponential variables of mean 1: a Gamma tail."""
    total, n = np.asarray(total, np.float64), np.asarray(n, np.float64)
    return np.where(n <= 0, 1.0, np.maximum(gammaincc(np.maximum(n, 1), np.maximum(total, 0)), SMALLEST))


def binomial_log_e(k: ArrayLike, n: ArrayLike, p: float) -> np.ndarray:
    """The natural logarithm of an e-value against Binomial(n, p), from k successes.

    The mean over q = p + (1 − p) / 2ʲ, j = 1 … 12, of ∏ (1 + λⱼ (Xᵢ − p)) with λⱼ = (q − p) / (p (1 − p)),
    which is the likelihood ratio of q against p: capital staked on success at fair odds (Shafer 2021,
    "Testing by betting"). Its expectation is 1. As n grows it may be watched and stopped at any time
    (Ville 1939).
    """
    k, n = np.asarray(k, np.float64)[..., None], np.asarray(n, np.float64)[..., None]
    q = p + (1 - p) * 0.5 ** np.arange(1, ALTERNATIVES + 1)
    return _mean_of_logs(xlogy(k, q / p) + xlogy(n - k, (1 - q) / (1 - p)))


def gamma_log_e(total: ArrayLike, n: ArrayLike) -> np.ndarray:
    """The natural logarithm of an e-value against n exponential variables of mean 1, from their sum.

    The mean over μ = 1 + 2^(3 − j), j = 1 … 12, of the likelihood ratio of mean μ against mean 1,
    ∏ (1/μ) exp(xᵢ (1 − 1/μ)); otherwise as :func:`binomial_log_e`.
    """
    total, n = np.asarray(total, np.float64)[..., None], np.asarray(n, np.float64)[..., None]
    mean = 1 + 2.0 ** (3 - np.arange(1, ALTERNATIVES + 1))
    return _mean_of_logs(total * (1 - 1 / mean) - n * np.log(mean))


def student_t_upper(t: float, degrees: int) -> float:
    """P(T ≥ t) for Student's t, but at least :data:`SMALLEST`."""
    return max(SMALLEST, float(stdtr(degrees, -t)))


def e_from_log(log_e: ArrayLike) -> float:
    """exp(log_e). Where that overflows, a large float: a smaller number, so still an e-value."""
    return float(np.exp(np.minimum(log_e, np.log(np.finfo(np.float64).max) - 1)))


def _mean_of_logs(logs: np.ndarray) -> np.ndarray:
    return np.logaddexp.reduce(logs, axis=-1) - np.log(logs.shape[-1])
