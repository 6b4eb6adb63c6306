"""E-values: evidence whose expectation is at most 1 under the null.

They may be watched while they grow (Ville 1939: the chance that an e-process ever reaches 1/α is at most α),
averaged whatever their dependence, and turned into a p-value as 1/E. A product is an e-value only where each
factor has expectation at most 1 given those before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

SHARES = tuple(0.95 / 2**n for n in range(11))
"""Shares of the capital that :func:`log_betting_process` stakes, .95 down to .00093. Where a small
one is best, the nearest has at least 8/9 of its growth, and more than four fifths otherwise."""


def log_betting_process(payoffs: ArrayLike) -> np.ndarray:
    """ln E_t [N] of the running e-process: the mean over gamblers of ∏ (1 − f + f·payoffᵢ), i ≤ t.

    Each begins with a capital of 1 and stakes the share f of what he has in every round. Whoever bets on a
    fair game has an expected capital of 1, whenever he stops. There is a gambler for every bet and every f in
    :data:`SHARES`; that nobody knows which of them is right costs a factor of their number at most.

    Args:
        payoffs: of a stake of 1, [N] or [bets, N]: not negative, and with an expectation of at most 1 under
            the null given all before it.
    """
    payoffs_BN = np.atleast_2d(np.asarray(payoffs, np.float64))
    log_e_N = np.full(payoffs_BN.shape[1], -np.inf)
    for payoffs_N in payoffs_BN:
        for share in SHARES:
            np.logaddexp(log_e_N, np.cumsum(np.log1p(share * (payoffs_N - 1))), out=log_e_N)
    return log_e_N - math.log(len(payoffs_BN) * len(SHARES))


def rounds_until(log_e_N: np.ndarray, at: float) -> int | None:
    """How many rounds it took until E ≥ ``at``; None where it never did."""
    reached = np.flatnonzero(log_e_N >= math.log(at))
    return int(reached[0]) + 1 if len(reached) else None


def weighted_mean(es: Sequence[float], weights: Sequence[float]) -> float:
    """Σ wᵢ Eᵢ / Σ wᵢ, the only admissible merge under arbitrary dependence (Wang 2024, arXiv:2409.19888).

    Args:
        weights: not negative, fixed before the data were seen; a test that could not run has E = 1.
    """
    assert len(es) == len(weights) and min(weights) >= 0 and sum(weights) > 0
    return math.fsum(w * e for w, e in zip(weights, es, strict=True)) / math.fsum(weights)


def from_p(p: float, kappa: float = 0.5) -> float:
    """The e-value κ p^(κ − 1) of a p-value (Vovk & Wang 2021, arXiv:1912.06116); 1 / (2 √p) by default.

    Args:
        kappa: between 0 and 1, fixed before the data were seen.
    """
    assert 0 < p <= 1 and 0 < kappa < 1
    return kappa * p ** (kappa - 1)


def to_p(e: float) -> float:
    """min(1, 1/E), a p-value by Markov's inequality; valid at any stopping time of an e-process."""
    return 1.0 if e <= 1 else 1.0 / e


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979), in the order given: reject those ≤ α, with familywise error ≤ α."""
    adjusted, highest = [0.0] * len(ps), 0.0
    for place, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, min(1.0, (len(ps) - place) * ps[index]))
        adjusted[index] = highest
    return adjusted
