"""E-values and betting e-processes: evidence with expectation at most 1 under the null, at any time.

An e-process may be stopped at any time (Ville 1939: the chance that it ever reaches 1/α is at most α).
E-values may be averaged whatever their dependence, and 1/E is a p-value. A product of e-values is an e-value
only if each factor has expectation at most 1 given those before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

STAKES = tuple(0.95 / 2**n for n in range(11))
"""Shares of the capital that :func:`log_betting_process` stakes, .95 down to .00093. If the best stake is
small, the nearest of these has at least 8/9 of its growth; otherwise more than four fifths."""


def log_betting_process(payoffs: ArrayLike) -> np.ndarray:
    """ln E_t [N] of the running e-process: the mean over gamblers of ∏ (1 − f + f·payoffᵢ), i ≤ t.

    Each gambler starts with a capital of 1 and stakes the share f of it in every round. A gambler in a fair
    game has an expected capital of 1, whenever he stops. There is one gambler for every bet and every f in
    :data:`STAKES`; averaging over them costs at most a factor of their number against the best one.

    Args:
        payoffs: of a stake of 1, [N] or [bets, N]: not negative, and with an expectation of at most 1 under
            the null given all before it.
    """
    payoffs_BN = np.atleast_2d(np.asarray(payoffs, np.float64))
    log_e_N = np.full(payoffs_BN.shape[1], -np.inf)
    for payoffs_N in payoffs_BN:
        for stake in STAKES:
            np.logaddexp(log_e_N, np.cumsum(np.log1p(stake * (payoffs_N - 1))), out=log_e_N)
    return log_e_N - math.log(len(payoffs_BN) * len(STAKES))


def rounds_until(log_e_N: np.ndarray, threshold: float) -> int | None:
    """Rounds until E ≥ ``threshold`` for the first time; None if it never is."""
    reached = np.flatnonzero(log_e_N >= math.log(threshold))
    return int(reached[0]) + 1 if len(reached) else None


def weighted_mean(es: Sequence[float], weights: Sequence[float]) -> float:
    """Σ wᵢ Eᵢ / Σ wᵢ, the only admissible merge under arbitrary dependence (Wang 2024, arXiv:2409.19888).

    Args:
        weights: not negative, fixed before the data were seen; a test that could not run has E = 1.
    """
    assert len(es) == len(weights) and min(weights) >= 0 and sum(weights) > 0
    return math.fsum(w * e for w, e in zip(weights, es, strict=True)) / math.fsum(weights)


def e_from_p(p: float, kappa: float = 0.5) -> float:
    """The e-value κ p^(κ − 1) of a p-value (Vovk & Wang 2021, arXiv:1912.06116); 1 / (2 √p) by default.

    Args:
        kappa: between 0 and 1, fixed before the data were seen.
    """
    assert 0 < p <= 1 and 0 < kappa < 1
    return kappa * p ** (kappa - 1)


def p_from_e(e: float) -> float:
    """min(1, 1/E), a p-value by Markov's inequality; valid at any stopping time of an e-process."""
    return 1.0 if e <= 1 else 1.0 / e
