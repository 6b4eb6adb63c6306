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

BETS = tuple(1.9 / 2**n for n in range(11))
"""Stakes λ of :func:`betting_process`, 1.9 down to 0.0019. The nearest stake has at least 8/9 of the growth
of the best one in between, and averaging over eleven costs a factor of 11 at most."""


def log_betting_process(values_N: ArrayLike, mean: float = 0.5) -> np.ndarray:
    """The natural logarithm of :func:`betting_process`, which does not overflow.

    Args:
        values_N: each in [0, 1], with a conditional expectation of at most ``mean`` under the null.
        mean: between 0 and 1.
    """
    gains_N = np.asarray(values_N, np.float64) - mean
    stakes = bets_against(mean)
    log_e_N = np.full(len(gains_N), -np.inf)
    for stake in stakes:
        np.logaddexp(log_e_N, np.cumsum(np.log1p(stake * gains_N)), out=log_e_N)
    return log_e_N - math.log(len(stakes))


def betting_process(uniforms_N: ArrayLike) -> np.ndarray:
    """The running e-process E_t [N]: the mean over :data:`BETS` of ∏ (1 + λ (U_i − ½)), i ≤ t.

    Capital that begins at 1 and is staked, in each round, on U above a half. Whoever bets on a fair game has
    an expected capital of 1, whenever he stops. Needed of U: in [0, 1], and a mean of at most ½ given all
    before it; uniform ranks and mid-ranks both do.
    """
    with np.errstate(over="ignore"):
        return np.exp(log_betting_process(uniforms_N))


def bets_against(mean: float) -> list[float]:
    """The stakes on a variable in [0, 1] of this mean: capital stays positive, since λ · mean < 1."""
    return [stake * 0.5 / mean for stake in BETS]


def first_time(log_e_N: np.ndarray, at: float) -> int | None:
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
