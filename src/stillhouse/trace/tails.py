"""The smallest p-value that is told, and the exact interval for a rate."""

from __future__ import annotations

import numpy as np

SMALLEST = float(np.finfo(np.float64).tiny)
"""The smallest p-value that is ever reported: below it a float cannot tell it from 0."""


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
