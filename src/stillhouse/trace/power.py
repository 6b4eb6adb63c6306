"""What a log can show before it is tested, and what it could have shown when it showed nothing.

One quantity rules: z ≈ (2·AUC − 1) · f · √(3NK / (K + 2)), where f is the share of the log that was trained
on and AUC the chance that a trained output outranks one of its K resamples. Its derivation is in
docs/trace-statistics.md.
"""

from __future__ import annotations

import math

from .evalues import BETS


def predicted_z(f: float, n: float, k: float, auc: float) -> float:
    """The expected z of the rank test.

    Args:
        f: share of the log that was trained on.
        n: delivered outputs.
        k: resamples of each.
        auc: chance that a trained output outranks a resample.
    """
    return (2 * auc - 1) * f * math.sqrt(3 * n * k / (k + 2))


def power_of_p(f: float, n: float, k: float, auc: float, alpha: float) -> float:
    """The chance that the rank test's p is at most ``alpha``: Φ(z − z_α)."""
    from scipy.special import ndtr, ndtri

    return float(ndtr(predicted_z(f, n, k, auc) + ndtri(alpha)))


def power_of_e(f: float, n: float, k: float, auc: float, e_target: float) -> float:
    """The chance that the e-process ends at ``e_target`` or above.

    The best stake in hindsight earns exp(Z²/2), where Z has mean z and variance 1, and the average over the
    stakes keeps at least the share of one of them: Φ(z − √(2 ln(E · number of stakes))). A lower bound up to
    the normal approximation and the coarseness of the stakes.
    """
    from scipy.special import ndtr

    return float(ndtr(predicted_z(f, n, k, auc) - _needed(e_target)))


def log_size(f: float, auc: float, k: float, e_target: float, power: float) -> int:
    """The delivered outputs with which the e-process ends at ``e_target`` or above with chance ``power``."""
    from scipy.special import ndtri

    assert f > 0 and auc > 0.5
    z = _needed(e_target) + float(ndtri(power))
    return math.ceil((z / predicted_z(f, 1, k, auc)) ** 2)


def detectable_effect(n: float, k: float, alpha: float, power: float) -> float:
    """The smallest (2·AUC − 1) · f that the rank test finds at level ``alpha`` with chance ``power``.

    Divided by 2·AUC − 1 of a surrogate it is the smallest f. Above 1 means that no effect is large enough.
    """
    from scipy.special import ndtri

    return float(ndtri(power) - ndtri(alpha)) / predicted_z(1.0, n, k, 1.0)


def _needed(e_target: float) -> float:
    return math.sqrt(2 * math.log(e_target * len(BETS)))
