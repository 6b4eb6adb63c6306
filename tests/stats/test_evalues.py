"""E-values against enumeration, simulation and their definition."""

import itertools
import math

import numpy as np
import pytest
from rank_helpers import bets_of, within

from stillhouse.stats import (
    STAKES,
    e_from_p,
    log_betting_process,
    p_from_e,
    rank_payoffs,
    rounds_until,
    weighted_mean,
)
from stillhouse.stats.ranks import BETS


def test_a_remembered_log_is_found_sooner_than_by_its_ranks_alone():
    """The reason for the second bet: K = 4, a twentieth read, AUC .95."""
    rng = np.random.default_rng(13)
    scores = rng.random((10_000, 5))
    scores[:500, 0] = rng.random((500, 19)).max(1)
    by_rank, both = (log_betting_process(rank_payoffs(scores, bets)[:, :, 0])[-1] for bets in ((2.0,), BETS))
    assert both > by_rank + math.log(100)


def test_the_e_process_has_an_expectation_of_one_at_every_step():
    """Exactly, over all 3^5 ways to place the labels; a sample's mean would miss the rare great wins."""
    scores = np.random.default_rng(6).integers(0, 4, size=(5, 3)).astype(float)
    everywhere = [
        bets_of(np.array([np.roll(row, -place) for row, place in zip(scores, places, strict=True)]))
        for places in itertools.product(range(3), repeat=5)
    ]
    processes = np.exp([log_betting_process(values) for values in everywhere])
    assert processes.mean(axis=0) == pytest.approx(np.ones(5))


def test_the_e_process_keeps_its_size_under_optional_stopping():
    rng = np.random.default_rng(6)
    draws, n, k = 12_000, 120, 3
    paid = bets_of(rng.normal(size=(draws * n, k + 1))).reshape(-1, draws, n)
    highest = np.array([log_betting_process(paid[:, draw]).max() for draw in range(draws)])
    for alpha in (0.05, 0.01, 0.001):  # looking after every item and stopping at the best moment
        assert within(np.sum(highest >= -math.log(alpha)), draws, alpha)
    assert rounds_until(log_betting_process(paid[:, 0]), 1e9) is None


def test_the_e_process_is_the_mean_of_products():
    paid = np.array([[1.8, 0.4, 1.4], [3.0, 0.1, 0.0]])
    slow = [
        np.mean([math.prod(1 - f + f * x for x in bet[: t + 1]) for bet in paid for f in STAKES])
        for t in range(3)
    ]
    assert np.exp(log_betting_process(paid)) == pytest.approx(slow)
    log_e = log_betting_process(np.full(50, 1.98))
    assert rounds_until(log_e, 20.0) == int(np.argmax(np.exp(log_e) >= 20)) + 1


def test_a_bet_on_fewer_than_the_mean_loses_whatever_the_single_means():
    """Independent items with means on both sides of m, m the average: expectation at most 1."""
    rng = np.random.default_rng(8)
    means = np.tile([0.1, 0.9], 20)
    draws = (rng.random((20_000, 40)) < means).astype(float)
    ends = np.exp([log_betting_process(row / 0.5)[-1] for row in draws])
    assert ends.mean() < 1 + 4 * ends.std() / math.sqrt(len(ends))


def test_calibrated_p_values_are_e_values():
    uniform = (np.arange(2_000_000) + 0.5) / 2_000_000
    for kappa in (0.3, 0.5, 0.8):
        mean = np.mean(kappa * uniform ** (kappa - 1))
        assert mean == pytest.approx(1, abs=0.01)
        assert e_from_p(0.01, kappa) == pytest.approx(kappa * 0.01 ** (kappa - 1))
    assert e_from_p(0.0001) == pytest.approx(50)
    assert p_from_e(0.5) == 1 and p_from_e(40) == 1 / 40
    assert weighted_mean([1, 100], [3, 1]) == pytest.approx(25.75)
