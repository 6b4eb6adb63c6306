"""Confidence intervals: ratios and paired differences clustered by document, and Clopper-Pearson.

Tokens of one document are alike, so an interval that treats them as independent is
too narrow. All intervals here treat a measure as a ratio of two sums over documents
(say nats of divergence over tokens counted) and take its variance from how much the
documents differ.

They cover the choice of held-out documents. They do not cover the other ways in which
a repeated run would differ: the seed of the training, the prompts it trained on, the
machine.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Estimate:
    """A value and its interval.

    ``low`` and ``high`` are None with fewer than two documents: one document does not
    show how much documents differ.
    """

    value: float
    low: float | None
    high: float | None
    documents: int
    confidence: float = 0.95

    def to_dict(self) -> dict[str, Any]:
        """The form of ``report.json``."""
        return asdict(self)


def interval(numerators: ArrayLike, denominators: ArrayLike, confidence: float = 0.95) -> Estimate:
    """The ratio Σ numerators / Σ denominators over documents, with a clustered interval.

    With ratio R and n documents, the linearised (delta method) variance is

        n / (n − 1) · Σ (xᵢ − R tᵢ)² / (Σ tᵢ)²

    (Cochran, *Sampling Techniques*, 3rd ed. 1977, eq. 6.13 without the finite population
    correction; the clustered standard error of Miller 2024, "Adding Error Bars to Evals",
    arXiv:2411.00640, is the same sum), and the interval is Student's t with n − 1 degrees
    of freedom. It is symmetric, so near the end of a bounded scale (a rate close to 0 or 1,
    a divergence close to 0) it is too narrow on the inner side; see :func:`clipped`.

    Args:
        numerators: [D], one sum for each document.
        denominators: [D], the sum it is divided by (tokens); not negative, some positive.
        confidence: level of the interval, between 0 and 1.

    Raises:
        ValueError: the denominators sum to 0.
    """
    x_D = np.asarray(numerators, dtype=np.float64)
    t_D = np.asarray(denominators, dtype=np.float64)
    assert x_D.shape == t_D.shape
    assert x_D.ndim == 1
    total = t_D.sum()
    if not total > 0:
        raise ValueError("no token was counted, so there is nothing to estimate")
    ratio = float(x_D.sum() / total)
    documents = len(x_D)
    if documents < 2:
        return Estimate(ratio, None, None, documents, confidence)
    variance = documents / (documents - 1) * float(((x_D - ratio * t_D) ** 2).sum()) / total**2
    half_width = student_t(confidence, documents - 1) * math.sqrt(variance)
    return Estimate(ratio, ratio - half_width, ratio + half_width, documents, confidence)


def paired_difference(
    a_numerators: ArrayLike, b_numerators: ArrayLike, denominators: ArrayLike, confidence: float = 0.95
) -> Estimate:
    """How much more ``a`` has than ``b``, both measured on the same tokens of the same documents.

    The difference is taken inside each document, so what makes a document hard for both
    cancels; the interval is that of :func:`interval` over these differences (paired
    analysis, Miller 2024, section 4.2).

    Args:
        a_numerators: [D] sums of one model.
        b_numerators: [D] sums of the other, in the same order.
        denominators: [D] tokens of each document.
    """
    difference_D = np.asarray(a_numerators, np.float64) - np.asarray(b_numerators, np.float64)
    return interval(difference_D, denominators, confidence)


def exponential(estimate: Estimate) -> Estimate:
    """Perplexity from nats per token: value and both ends through exp, so the level is kept."""
    with np.errstate(over="ignore"):
        low = None if estimate.low is None else float(np.exp(estimate.low))
        high = None if estimate.high is None else float(np.exp(estimate.high))
        return replace(estimate, value=float(np.exp(estimate.value)), low=low, high=high)


def clipped(estimate: Estimate, lowest: float = -math.inf, highest: float = math.inf) -> Estimate:
    """The interval cut to the possible values (a rate lies in [0, 1]).

    Cutting does not repair a wrong interval: if every document has the same rate of 0 or 1,
    its width is zero, whatever the number of documents. Then only the rule of three helps:
    with n documents and no exception, up to 3/n of documents may still be one.
    """
    if estimate.low is None or estimate.high is None:
        return estimate
    return replace(estimate, low=max(lowest, estimate.low), high=min(highest, estimate.high))


def student_t(confidence: float, degrees: int) -> float:
    """The two-sided quantile of Student's t: the half width of an interval in standard errors."""
    from scipy.special import stdtrit  # scipy.stats would cost a second to import

    return float(stdtrit(degrees, 0.5 + confidence / 2))


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval for a rate after k successes in n trials (Clopper & Pearson 1934); equal tails.

    With k = 0 it is [0, 1 − (α/2)^(1/n)]: no success in 300 trials still leaves a rate of 1%.
    """
    from scipy.special import betaincinv

    assert 0 <= k <= n and n > 0
    half = (1.0 - confidence) / 2
    low = float(betaincinv(k, n - k + 1, half)) if k else 0.0
    high = float(betaincinv(k + 1, n - k, 1.0 - half)) if k < n else 1.0
    return low, high
