"""The measures in the zoo's tables: size with bounds, power against log size and dose, time to evidence.

Shapes: N delivered outputs, K resamples of each, R redraws.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from stillhouse.stats import (
    clopper_pearson,
    log_betting_process,
    log_rank_e_process,
    log_size,
    rank_payoffs,
    rank_test,
    rounds_until,
    signed_wins,
)
from stillhouse.trace.detectors import canaries
from stillhouse.trace.detectors.radioactivity import judge as radioactivity
from stillhouse.trace.detectors.transcript import per_token
from stillhouse.watermark import Mark, Pairs, account_key, detection_from_scores

LEVELS = (0.05, 0.01, 0.001)
PAIRS = 300
"""Most pairs whose size is measured under thousands of keys."""
LN10 = float(np.log(10))


@dataclass(frozen=True)
class Size:
    """How often an innocent suspect was accused at each level, with an exact 95% interval."""

    draws: int
    rates: dict[float, float]
    bounds: dict[float, tuple[float, float]]

    @property
    def exceeds(self) -> bool:
        """Whether the true rate is above the nominal one at 95% confidence."""
        return any(low > level for level, (low, _) in self.bounds.items())


def size(p_values: np.ndarray) -> Size:
    """Rates of p ≤ level with Clopper–Pearson bounds; p [draws]."""
    draws = len(p_values)
    hits = {level: int((p_values <= level).sum()) for level in LEVELS}
    return Size(
        draws,
        {level: count / draws for level, count in hits.items()},
        {level: clopper_pearson(count, draws) for level, count in hits.items()},
    )


def redrawn(scores_NK1: np.ndarray, redraws: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Repeats the test with the label "delivered" placed at random in every item.

    Returns:
        exact p-values of the rank sum [R], last and highest E [R].
    """
    generator = np.random.default_rng(seed)
    wins_NK1 = signed_wins(scores_NK1)
    k = scores_NK1.shape[1] - 1
    tail, paid_BNK1 = upper_tail(wins_NK1), rank_payoffs(scores_NK1)
    ps, last, highest = np.empty(redraws), np.empty(redraws), np.empty(redraws)
    items = np.arange(len(wins_NK1))
    for r in range(redraws):
        labels_N = generator.integers(0, k + 1, len(wins_NK1))
        ps[r] = tail[wins_NK1[items, labels_N].sum() - len(wins_NK1) * wins_NK1.min()]
        log_e = log_betting_process(paid_BNK1[:, items, labels_N])
        last[r], highest[r] = log_e[-1], log_e.max()
    return ps, np.exp(last), np.exp(highest)


def redrawn_canaries(table: pa.Table, redraws: int, seed: int) -> list[float]:
    """p-values [R] of a transcript of canaries with the delivered one redrawn in every set."""
    sets = len(set(table["set"].to_pylist()))
    return _redrawn_sums(canaries.rank_values(per_token(table).reshape(sets, -1)), redraws, seed)


def redrawn_versions(table: pa.Table, redraws: int, seed: int) -> list[float]:
    """p-values [R] of a transcript of rephrasings with the published version redrawn for every text."""
    wins_NK1 = signed_wins(per_token(table).reshape(len(set(table["id"].to_pylist())), -1))
    return _redrawn_sums(wins_NK1, redraws, seed)


def _redrawn_sums(values_NK1: np.ndarray, redraws: int, seed: int) -> list[float]:
    """p-values [R] of the sum of the labelled texts' values, with the labels redrawn."""
    tail, n = upper_tail(values_NK1), len(values_NK1)
    labels_RN = np.random.default_rng(seed).integers(0, values_NK1.shape[1], (redraws, n))
    return tail[values_NK1[np.arange(n), labels_RN].sum(1) - n * values_NK1.min()].tolist()


def upper_tail(values_NK1: np.ndarray) -> np.ndarray:
    """P(sum ≥ s) for s from N times the least value, by adding item after item: a slow, obvious oracle."""
    mass, span = np.ones(1), np.ptp(values_NK1) + 1
    for values in values_NK1 - values_NK1.min():
        mass = np.convolve(mass, np.bincount(values, minlength=span) / len(values))
    return np.minimum(1.0, mass[::-1].cumsum()[::-1])


def radioactivity_result(name: str, transcript: pa.Table, mark: Mark) -> dict[str, float]:
    """p and log10 E of the radioactivity test for a key, under ``name``."""
    settings = {"scheme": mark.scheme, "window": mark.window, "gamma": mark.gamma}
    finding = radioactivity.judge(transcript, {"key": mark.key.hex(), "level": "L2", **settings})
    assert finding.p_value is not None and finding.e_value is not None
    log10_e = float(np.log10(max(finding.e_value, 1e-300)))
    return {f"{name}_p": finding.p_value, f"{name}_log10_e": log10_e}


def other_keys(mark: Mark, pairs: Pairs, redraws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """p-values and log10 E, both [R], of the same pairs under keys that marked nothing."""
    master = np.random.default_rng(seed).bytes(32)
    keys = [replace(mark, key=account_key(master, f"redraw {number}")) for number in range(redraws)]
    detections = [detection_from_scores(key, key.scores(pairs.windows_NW, pairs.tokens_N)) for key in keys]
    return np.array([one.p_value for one in detections]), np.array([one.log_e for one in detections]) / LN10


def null_draws(
    scores_NK1: np.ndarray,
    transcript: pa.Table,
    mark: Mark,
    sentences: pa.Table,
    redraws: int,
    seed: int,
) -> dict[str, list[float]]:
    """Results of the tests with redrawn labels and keys: p, 1 / E of both together, highest E.

    Args:
        scores_NK1: of delivered outputs and their resamples.
        transcript: of radioactivity.
        mark: the mark whose key is redrawn.
        sentences: the transcript of the canaries.
    """
    pairs, _ = radioactivity.scored_pairs(transcript, mark.window)
    pairs = Pairs(pairs.windows_NW[:PAIRS], pairs.tokens_N[:PAIRS])
    ps, last, highest = redrawn(scores_NK1, redraws, seed)
    of_keys, log10_e_of_keys = other_keys(mark, pairs, redraws, seed)
    together = combined(np.log10(np.maximum(last, 1e-300)), log10_e_of_keys)
    return {
        "exchangeable": ps.tolist(),
        "account": of_keys.tolist(),
        "canaries": redrawn_canaries(sentences, redraws, seed),
        "combined": np.minimum(1.0, 10.0**-together).tolist(),
        "highest_e": highest.tolist(),
    }


def evidence(scores_NK1: np.ndarray) -> dict[str, float | int | None]:
    """The exchangeable test of one suspect: E at the end, and outputs until it reaches 20 and 1,000."""
    test = rank_test(scores_NK1)
    log_e = log_rank_e_process(scores_NK1)
    return {
        "z": test.z,
        "auc": test.auc,
        "p": test.p,
        "log10_e": float(log_e[-1] / np.log(10)),
        "until_20": rounds_until(log_e, 20),
        "until_1000": rounds_until(log_e, 1000),
    }


def share_reaching(scores_NK1: np.ndarray, n: int, draws: int, e_target: float, seed: int) -> float:
    """Share of random logs of ``n`` of these items whose E ends at ``e_target`` or above."""
    generator = np.random.default_rng(seed)
    paid_BN = rank_payoffs(scores_NK1)[:, :, 0]
    hits = 0
    for _ in range(draws):
        chosen = generator.choice(len(scores_NK1), n, replace=False)
        hits += log_betting_process(paid_BN[:, chosen])[-1] >= np.log(e_target)
    return hits / draws


def combined(log10_e: ArrayLike, log10_e_of_key: ArrayLike) -> np.ndarray:
    """log10 of the level's E: the mean fixed in advance, weight 3 for resamples and 1 for the key."""
    of_resamples, of_key = (np.asarray(values, float) * LN10 for values in (log10_e, log10_e_of_key))
    return np.logaddexp(np.log(0.75) + of_resamples, np.log(0.25) + of_key) / LN10


def needed(f: float, auc_of_used: float, k: int, e_target: float = 1000.0, chance: float = 0.8) -> int | None:
    """The log size at which E reaches ``e_target`` with this chance, by the power formula."""
    return log_size(f, auc_of_used, k, e_target, chance)
