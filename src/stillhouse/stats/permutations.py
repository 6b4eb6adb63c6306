"""Exact tail probabilities of matches of a random permutation and of coin tosses; Fisher's combination.

For a uniformly random permutation and for fair coins. Every result is the natural logarithm of a probability,
because a model of 46,000 units that are all recognised has one of about e^-32,000.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln

from stillhouse.stats.tails import SMALLEST


def fixed_points_log_p(hits: int, n: int) -> float:
    """log P(at least ``hits`` of ``n`` labels keep their position) under a uniformly random permutation.

    Montmort's matching problem: P(F = j) = 1/j! · Σ_{i ≤ n−j} (−1)^i / i!.
    """
    assert 0 <= hits <= n
    if hits == 0:
        return 0.0
    terms = np.cumsum([(-1) ** i / math.factorial(i) for i in range(min(n, 20) + 1)])  # 1/21! is below 1e-19
    j = np.arange(hits, n + 1)
    deranged = np.maximum(terms[np.minimum(n - j, len(terms) - 1)], 0)
    deranged[n - j == 1] = 0  # no permutation moves exactly one label
    with np.errstate(divide="ignore"):
        return min(0.0, _log_sum(np.log(deranged) - gammaln(j + 1)))


def heads_log_p(heads: int, n: int) -> float:
    """log P(at least ``heads`` heads in ``n`` tosses of a fair coin), the binomial's upper tail."""
    assert 0 <= heads <= n
    j = np.arange(heads, n + 1)
    ways = gammaln(n + 1) - gammaln(j + 1) - gammaln(n - j + 1)
    return min(0.0, _log_sum(ways) - n * math.log(2))


def fisher_log_p(log_ps: Sequence[float]) -> float:
    """Fisher's combination of p-values that are independent under the null (each may be conservative).

    −Σ log p is at most a Gamma variable of shape m, whose tail is e^−x Σ_{j<m} x^j / j!.
    """
    assert len(log_ps) > 0
    x = -math.fsum(log_ps)
    if x <= 0:
        return 0.0
    j = np.arange(len(log_ps))
    return min(0.0, _log_sum(j * math.log(x) - gammaln(j + 1)) - x)


def p_from_log(log_p: float) -> float:
    """exp(log_p), but at least :data:`.tails.SMALLEST`."""
    return max(math.exp(log_p), SMALLEST)


def _log_sum(logs: np.ndarray) -> float:
    peak = float(logs.max())
    return peak + math.log(float(np.exp(logs - peak).sum()))
