"""The rank test and its payoffs against enumeration, scipy, closed forms and simulation."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings, strategies as st
from rank_helpers import within

from stillhouse.stats import (
    delivered_win_rates,
    label_permutation_p,
    mid_ranks,
    rank_odds,
    rank_payoffs,
    rank_test,
    signed_wins,
)


def enumerated_p(scores):
    """P(Σ c ≥ observed) by enumeration of all labels."""
    values = []
    for row in scores:
        row = [x for x in row if not math.isnan(x)]
        values.append([sum((x > y) - (x < y) for y in row) for x in row])
    seen = sum(
        next(v for x, v in zip([y for y in row if not math.isnan(y)], value, strict=True) if x == row[0])
        for row, value in zip(scores, values, strict=True)
    )
    sums = [sum(choice) for choice in itertools.product(*values)]
    return sum(s >= seen for s in sums) / len(sums)


rows_of_three = st.lists(
    st.lists(st.integers(0, 3).map(float), min_size=3, max_size=3), min_size=1, max_size=6
)


@given(rows_of_three)
@settings(max_examples=150, deadline=None)
def test_exact_p_is_that_of_enumeration_with_ties(rows):
    test = rank_test(np.array(rows))
    assert test.p_exact == pytest.approx(enumerated_p(rows), rel=1e-9)
    assert test.p_bound >= test.p_exact * (1 - 1e-9)


@given(
    st.lists(
        st.tuples(st.lists(st.floats(-3, 3), min_size=2, max_size=4, unique=True)), min_size=1, max_size=6
    )
)
@settings(max_examples=100, deadline=None)
def test_exact_p_where_items_have_different_numbers_of_resamples(items):
    scores = np.full((len(items), 4), np.nan)
    for number, (row,) in enumerate(items):
        scores[number, : len(row)] = row
    assert rank_test(scores).p_exact == pytest.approx(enumerated_p(scores.tolist()), rel=1e-9)


def test_with_one_resample_the_test_is_the_sign_test():
    scores = np.random.default_rng(1).normal(size=(200, 2)) + np.array([0.3, 0.0])
    test = rank_test(scores)
    wins = int((scores[:, 0] > scores[:, 1]).sum())
    assert test.p_exact == pytest.approx(scipy.stats.binomtest(wins, 200, alternative="greater").pvalue)
    assert test.auc == pytest.approx(wins / 200)


def test_the_deepest_tail_is_exact_to_its_last_digits():
    """Every output first among five: p = 5^-N, far below what a plain convolution can resolve."""
    scores = np.tile([9.0, 1.0, 2.0, 3.0, 4.0], (300, 1))
    test = rank_test(scores)
    assert math.log(test.p_exact) == pytest.approx(-300 * math.log(5), rel=1e-12)
    one_less = scores.copy()
    one_less[0] = [3.5, 1.0, 2.0, 3.0, 4.0]  # second of five: 301 ways reach this sum
    assert rank_test(one_less).p_exact == pytest.approx(301 * 5.0**-300, rel=1e-9)


def test_a_large_log_agrees_with_the_normal_distribution_near_the_middle():
    scores = np.random.default_rng(2).normal(size=(20_000, 5))
    test = rank_test(scores)
    assert test.p_exact == pytest.approx(test.p_normal, abs=0.005)
    assert test.z == pytest.approx(scipy.stats.norm.isf(test.p_normal))
    capped = rank_test(scores, lattice=1000)
    assert capped.p_exact is None and capped.p == test.p_bound >= test.p_exact


def test_z_is_the_textbook_one_without_ties():
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(500, 4)) + np.array([0.2, 0, 0, 0])
    below = (scores[:, 1:] < scores[:, :1]).sum(1)
    n, k = 500, 3
    textbook = (below - k / 2).sum() / math.sqrt(n * k * (k + 2) / 12)
    assert rank_test(scores).z == pytest.approx(textbook)


def test_infinite_scores_are_ranked():
    scores = np.array([[np.inf, 0.0, -np.inf], [-np.inf, -np.inf, 0.0]])
    assert signed_wins(scores)[:, 0].tolist() == [2, -1]


def test_size_of_the_exact_test_with_and_without_ties():
    rng = np.random.default_rng(4)
    draws, n, k = 10_000, 12, 3
    for coarse in (False, True):
        ps = []
        for _ in range(draws):
            scores = rng.normal(size=(n, k + 1))
            ps.append(rank_test(np.round(scores) if coarse else scores).p)
        for alpha in (0.05, 0.01, 0.001):
            rejected = np.sum(np.array(ps) <= alpha)
            assert within(rejected, draws, alpha), (coarse, alpha, rejected)
        # and it is no more conservative than a discrete distribution must be
        assert np.sum(np.array(ps) <= 0.05) > 0.04 * draws


@pytest.mark.parametrize(("k", "best_of"), [(1, 2.0), (3, 12.0), (4, 0.7), (99, 1000.0)])
def test_the_odds_are_those_of_the_best_of_so_many_draws(k, best_of):
    """r of k uniforms lie below U^(1/m): beta-binomial, by scipy; and by simulation where m is whole."""
    expected = scipy.stats.betabinom(k, best_of, 1).pmf(np.arange(k + 1)) * (k + 1)
    assert rank_odds(k, best_of) == pytest.approx(expected)
    assert rank_odds(k, best_of).mean() == pytest.approx(1)
    assert rank_odds(k, 1.0) == pytest.approx(np.ones(k + 1))
    rng = np.random.default_rng(12)
    best = rng.random((100_000, 3)).max(1)
    below = (rng.random((100_000, 4)) < best[:, None]).sum(1)
    assert np.bincount(below) / 20_000 == pytest.approx(rank_odds(4, 3.0), abs=0.03)


def test_payoffs_of_ties_are_means_and_fair():
    scores = np.array([[2.0, 1.0, 2.0, 3.0], [5.0, 5.0, 5.0, math.nan], [1.0, -math.inf, math.nan, math.nan]])
    (paid,) = rank_payoffs(scores, (12.0,))
    three, two, one = (rank_odds(k, 12.0) for k in (3, 2, 1))
    tied = (three[1] + three[2]) / 2
    assert paid[0] == pytest.approx([tied, three[0], tied, three[3]])
    assert paid[1] == pytest.approx([1, 1, 1, 0])
    assert paid[2] == pytest.approx([one[1], one[0], 0, 0])
    assert paid.sum(1) / [4, 3, 2] == pytest.approx(np.ones(3))
    assert two.mean() == pytest.approx(1)


@given(
    st.lists(
        st.tuples(st.integers(-5, 9), *[st.integers(-5, 9) | st.none()] * 2),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=100, deadline=None)
def test_the_p_of_any_statistic_is_that_of_enumeration(rows):
    present = np.array([[value is not None for value in row] for row in rows])
    values = np.array([[value or 0 for value in row] for row in rows])
    sums = [sum(labels) for labels in itertools.product(*[[v for v in row if v is not None] for row in rows])]
    slow = sum(total >= values[:, 0].sum() for total in sums) / len(sums)
    assert label_permutation_p(values, present) == pytest.approx(slow, rel=1e-9)
    assert label_permutation_p(values, present, lattice=0) >= slow * (1 - 1e-9)


def test_mid_ranks_and_win_rates_are_those_of_counting():
    scores = np.array([[2.0, 1.0, 2.0, 3.0], [5.0, 4.0, np.nan, np.nan]])
    # first row: beats one, ties one, loses to one of three
    assert delivered_win_rates(scores) == pytest.approx([(1 + 0.5) / 3, 1.0])
    assert mid_ranks(scores) == pytest.approx([0.5, 0.75])
