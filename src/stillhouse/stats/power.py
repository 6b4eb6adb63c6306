"""Power and required log sizes of the rank test and of its e-process.

The rank test's z ≈ (2·AUC − 1) · f · √(3NK / (K + 2)), where f is the share of the log that was trained on
and AUC the chance that a trained output outranks one of its K resamples. The e-process gives first places
more weight and gains more from many resamples. Both are derived in docs/trace-statistics.md.

Shapes: G gamblers (a bet and a stake each), R ranks.
"""

from __future__ import annotations

import math

import numpy as np

from stillhouse.stats.evalues import STAKES
from stillhouse.stats.ranks import BETS, rank_odds

GAMBLERS = len(BETS) * len(STAKES)
"""Over which the e-process takes the mean."""


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
    """A lower bound on the chance that the e-process ends at ``e_target`` or above (normal approximation).

    Trained outputs are assumed to rank like the best of auc / (1 − auc) draws (:func:`.ranks.rank_odds`). A
    gambler whose capital grows by g nats an output with variance v has ln E = n·g ± √(n·v), and the mean over
    gamblers is at least his share of it. The bound is that of the best gambler:
    Φ((n·g − ln(E · gamblers)) / √(n·v)).
    """
    from scipy.special import ndtr

    g_G, v_G = _growth(f, k, auc)
    return float(ndtr((n * g_G - math.log(e_target * GAMBLERS)) / np.sqrt(n * v_G)).max())


def log_size(f: float, auc: float, k: float, e_target: float, power: float) -> int | None:
    """The number of delivered outputs with which the e-process reaches ``e_target`` with chance ``power``.

    None if no gambler wins: the effect is below half of the smallest stake, and no log is large enough.
    """
    from scipy.special import ndtri

    assert f > 0 and auc > 0.5
    g_G, v_G = _growth(f, k, auc)
    winning = g_G > 0
    if not winning.any():
        return None
    g_G, spread_G = g_G[winning], float(ndtri(power)) * np.sqrt(v_G[winning])
    needed = math.log(e_target * GAMBLERS)
    roots_G = (spread_G + np.sqrt(spread_G**2 + 4 * g_G * needed)) / (2 * g_G)  # √n: n·g − spread·√n = needed
    return math.ceil(roots_G.min() ** 2)


def detectable_effect(n: float, k: float, alpha: float, power: float) -> float:
    """The smallest (2·AUC − 1) · f that the rank test finds at level ``alpha`` with chance ``power``.

    Divide by 2·AUC − 1 of a surrogate for the smallest f. Above 1 no effect is large enough.
    """
    from scipy.special import ndtri

    return float(ndtri(power) - ndtri(alpha)) / predicted_z(1.0, n, k, 1.0)


def _growth(f: float, k: float, auc: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance [G] of what an output adds to the logarithm of each gambler's capital.

    A fractional k is a mean: some outputs have ⌊k⌋ resamples, the others one more.
    """
    auc, fewer = min(auc, 1 - 1e-6), max(1, math.floor(k))
    share_with_more = min(max(k - fewer, 0.0), 1.0)
    logs_GR, chance_R = [], []
    for count, share_of_outputs in ((fewer, 1 - share_with_more), (fewer + 1, share_with_more)):
        chance = 1 - f + f * rank_odds(count, auc / (1 - auc))
        chance_R.append(share_of_outputs * chance / chance.sum())
        logs_GR.append(
            np.log([1 - stake + stake * rank_odds(count, bet) for bet in BETS for stake in STAKES])
        )
    chances_R, all_logs_GR = np.concatenate(chance_R), np.concatenate(logs_GR, axis=1)
    g_G = all_logs_GR @ chances_R
    v_G = (all_logs_GR - g_G[:, None]) ** 2 @ chances_R
    return g_G, np.maximum(v_G, 1e-12)  # f = 1 and AUC 1 leave no variance
