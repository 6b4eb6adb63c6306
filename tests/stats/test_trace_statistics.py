"""Ranks, e-values, power and tails, against enumeration, scipy, closed forms and simulation."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings, strategies as st

from stillhouse.stats import evalues, power, rank_test, tails
from stillhouse.stats.tails import binomial_upper, gamma_upper


def enumerated_p(scores):
    """P(Σ c ≥ seen) by placing every label everywhere, one list comprehension at a time."""
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
    test = rank_test.rank_test(np.array(rows))
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
    assert rank_test.rank_test(scores).p_exact == pytest.approx(enumerated_p(scores.tolist()), rel=1e-9)


def test_with_one_resample_the_test_is_the_sign_test():
    scores = np.random.default_rng(1).normal(size=(200, 2)) + np.array([0.3, 0.0])
    test = rank_test.rank_test(scores)
    wins = int((scores[:, 0] > scores[:, 1]).sum())
    assert test.p_exact == pytest.approx(scipy.stats.binomtest(wins, 200, alternative="greater").pvalue)
    assert test.auc == pytest.approx(wins / 200)


def test_the_deepest_tail_is_exact_to_its_last_digits():
    """Every output first among five: p = 5^-N, far below what a plain convolution can resolve."""
    scores = np.tile([9.0, 1.0, 2.0, 3.0, 4.0], (300, 1))
    test = rank_test.rank_test(scores)
    assert math.log(test.p_exact) == pytest.approx(-300 * math.log(5), rel=1e-12)
    one_less = scores.copy()
    one_less[0] = [3.5, 1.0, 2.0, 3.0, 4.0]  # second of five: 301 ways reach this sum
    assert rank_test.rank_test(one_less).p_exact == pytest.approx(301 * 5.0**-300, rel=1e-9)


def test_a_large_log_agrees_with_the_normal_distribution_near_the_middle():
    scores = np.random.default_rng(2).normal(size=(20_000, 5))
    test = rank_test.rank_test(scores)
    assert test.p_exact == pytest.approx(test.p_normal, abs=0.005)
    assert test.z == pytest.approx(scipy.stats.norm.isf(test.p_normal))
    capped = rank_test.rank_test(scores, lattice=1000)
    assert capped.p_exact is None and capped.p == test.p_bound >= test.p_exact


def test_z_is_the_textbook_one_without_ties():
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(500, 4)) + np.array([0.2, 0, 0, 0])
    below = (scores[:, 1:] < scores[:, :1]).sum(1)
    n, k = 500, 3
    textbook = (below - k / 2).sum() / math.sqrt(n * k * (k + 2) / 12)
    assert rank_test.rank_test(scores).z == pytest.approx(textbook)


def test_infinite_scores_are_ranked():
    scores = np.array([[np.inf, 0.0, -np.inf], [-np.inf, -np.inf, 0.0]])
    assert rank_test.signed_wins(scores)[:, 0].tolist() == [2, -1]


def within(rejections, draws, alpha):
    """Not above alpha beyond what chance allows: the one-sided Clopper–Pearson bound at 99.9% covers it."""
    return tails.clopper_pearson(int(rejections), draws, 0.998)[0] <= alpha


def test_size_of_the_exact_test_with_and_without_ties():
    rng = np.random.default_rng(4)
    draws, n, k = 10_000, 12, 3
    for coarse in (False, True):
        ps = []
        for _ in range(draws):
            scores = rng.normal(size=(n, k + 1))
            ps.append(rank_test.rank_test(np.round(scores) if coarse else scores).p)
        for alpha in (0.05, 0.01, 0.001):
            rejected = np.sum(np.array(ps) <= alpha)
            assert within(rejected, draws, alpha), (coarse, alpha, rejected)
        # and it is no more conservative than a discrete distribution must be
        assert np.sum(np.array(ps) <= 0.05) > 0.04 * draws


def bets_of(scores):
    """What the bets on the delivered outputs pay, [bets, N]."""
    return rank_test.payoffs(scores)[:, :, 0]


@pytest.mark.parametrize(("k", "best_of"), [(1, 2.0), (3, 12.0), (4, 0.7), (99, 1000.0)])
def test_the_odds_are_those_of_the_best_of_so_many_draws(k, best_of):
    """r of k uniforms lie below U^(1/m): beta-binomial, by scipy; and by drawing where m is whole."""
    expected = scipy.stats.betabinom(k, best_of, 1).pmf(np.arange(k + 1)) * (k + 1)
    assert rank_test.odds(k, best_of) == pytest.approx(expected)
    assert rank_test.odds(k, best_of).mean() == pytest.approx(1)
    assert rank_test.odds(k, 1.0) == pytest.approx(np.ones(k + 1))
    rng = np.random.default_rng(12)
    best = rng.random((100_000, 3)).max(1)
    below = (rng.random((100_000, 4)) < best[:, None]).sum(1)
    assert np.bincount(below) / 20_000 == pytest.approx(rank_test.odds(4, 3.0), abs=0.03)


def test_payoffs_of_ties_are_means_and_fair():
    scores = np.array([[2.0, 1.0, 2.0, 3.0], [5.0, 5.0, 5.0, math.nan], [1.0, -math.inf, math.nan, math.nan]])
    (paid,) = rank_test.payoffs(scores, (12.0,))
    three, two, one = (rank_test.odds(k, 12.0) for k in (3, 2, 1))
    tied = (three[1] + three[2]) / 2
    assert paid[0] == pytest.approx([tied, three[0], tied, three[3]])
    assert paid[1] == pytest.approx([1, 1, 1, 0])
    assert paid[2] == pytest.approx([one[1], one[0], 0, 0])
    assert paid.sum(1) / [4, 3, 2] == pytest.approx(np.ones(3))
    assert two.mean() == pytest.approx(1)


def test_a_remembered_log_is_found_sooner_than_by_its_ranks_alone():
    """The reason for the second bet: K = 4, a twentieth read, AUC .95."""
    rng = np.random.default_rng(13)
    scores = rng.random((10_000, 5))
    scores[:500, 0] = rng.random((500, 19)).max(1)
    by_rank, both = (
        evalues.log_betting_process(rank_test.payoffs(scores, bets)[:, :, 0])[-1]
        for bets in ((2.0,), rank_test.BETS)
    )
    assert both > by_rank + math.log(100)


def test_the_e_process_has_an_expectation_of_one_at_every_step():
    """Exactly, over all 3^5 ways to place the labels; a sample's mean would miss the rare great wins."""
    scores = np.random.default_rng(6).integers(0, 4, size=(5, 3)).astype(float)
    everywhere = [
        bets_of(np.array([np.roll(row, -place) for row, place in zip(scores, places, strict=True)]))
        for places in itertools.product(range(3), repeat=5)
    ]
    processes = np.exp([evalues.log_betting_process(values) for values in everywhere])
    assert processes.mean(axis=0) == pytest.approx(np.ones(5))


def test_the_e_process_keeps_its_size_under_optional_stopping():
    rng = np.random.default_rng(6)
    draws, n, k = 12_000, 120, 3
    paid = bets_of(rng.normal(size=(draws * n, k + 1))).reshape(-1, draws, n)
    highest = np.array([evalues.log_betting_process(paid[:, draw]).max() for draw in range(draws)])
    for alpha in (0.05, 0.01, 0.001):  # whoever looks after every item and stops when he likes what he sees
        assert within(np.sum(highest >= -math.log(alpha)), draws, alpha)
    assert evalues.rounds_until(evalues.log_betting_process(paid[:, 0]), 1e9) is None


def test_the_e_process_is_the_mean_of_products():
    paid = np.array([[1.8, 0.4, 1.4], [3.0, 0.1, 0.0]])
    slow = [
        np.mean([math.prod(1 - f + f * x for x in bet[: t + 1]) for bet in paid for f in evalues.SHARES])
        for t in range(3)
    ]
    assert np.exp(evalues.log_betting_process(paid)) == pytest.approx(slow)
    log_e = evalues.log_betting_process(np.full(50, 1.98))
    assert evalues.rounds_until(log_e, 20.0) == int(np.argmax(np.exp(log_e) >= 20)) + 1


def test_a_bet_on_fewer_than_the_mean_loses_whatever_the_single_means():
    """Independent items with means on both sides of m, m the average: expectation at most 1."""
    rng = np.random.default_rng(8)
    means = np.tile([0.1, 0.9], 20)
    draws = (rng.random((20_000, 40)) < means).astype(float)
    ends = np.exp([evalues.log_betting_process(row / 0.5)[-1] for row in draws])
    assert ends.mean() < 1 + 4 * ends.std() / math.sqrt(len(ends))


def test_calibrated_p_values_are_e_values():
    uniform = (np.arange(2_000_000) + 0.5) / 2_000_000
    for kappa in (0.3, 0.5, 0.8):
        mean = np.mean(kappa * uniform ** (kappa - 1))
        assert mean == pytest.approx(1, abs=0.01)
        assert evalues.from_p(0.01, kappa) == pytest.approx(kappa * 0.01 ** (kappa - 1))
    assert evalues.from_p(0.0001) == pytest.approx(50)
    assert evalues.to_p(0.5) == 1 and evalues.to_p(40) == 1 / 40
    assert evalues.weighted_mean([1, 100], [3, 1]) == pytest.approx(25.75)


@given(st.lists(st.floats(0.0001, 1), min_size=1, max_size=8))
def test_holm_against_scipy(ps):
    """Rejecting one by one, smallest first, stops where the adjusted value passes alpha."""
    adjusted = evalues.holm(ps)
    for alpha in (0.01, 0.05, 0.2):
        order, rejected = sorted(range(len(ps)), key=lambda i: ps[i]), set()
        for step, index in enumerate(order):
            if ps[index] * (len(ps) - step) > alpha:
                break
            rejected.add(index)
        assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected


def simulated_log(rng, n, k, f, shift):
    """Scores of a log of which the share f was trained on."""
    scores = rng.normal(size=(n, k + 1))
    scores[: round(f * n), 0] += shift
    return scores


def test_the_power_law_matches_simulation():
    rng = np.random.default_rng(9)
    n, k, f, shift = 2000, 4, 0.1, 1.0
    auc = scipy.stats.norm.cdf(shift / math.sqrt(2))
    expected = power.predicted_z(f, n, k, auc)
    tests = [rank_test.rank_test(simulated_log(rng, n, k, f, shift), lattice=0) for _ in range(400)]
    zs = np.array([test.z for test in tests])
    assert abs(zs.mean() - expected) < 4 * zs.std() / 20
    assert zs.std() == pytest.approx(1, abs=0.15)
    seen = np.mean([test.p_normal <= 0.01 for test in tests])
    assert seen == pytest.approx(power.power_of_p(f, n, k, auc, 0.01), abs=0.08)


def test_a_log_of_the_computed_size_reaches_its_target():
    rng = np.random.default_rng(10)
    for k, f, best_of in ((1, 0.5, 4), (4, 0.2, 3), (8, 0.05, 19)):
        auc = best_of / (best_of + 1)
        n = power.log_size(f, auc, k, 1000, 0.8)
        assert power.power_of_e(f, n, k, auc, 1000) >= 0.8 > power.power_of_e(f, n - 1, k, auc, 1000)
        ends = []
        for _ in range(300):
            scores = rng.random((n, k + 1))
            used = rng.random(n) < f
            scores[used, 0] = rng.random((used.sum(), best_of)).max(1)
            ends.append(evalues.log_betting_process(bets_of(scores))[-1])
        reached = np.mean(np.array(ends) >= math.log(1000))
        assert reached > 0.8 - 3 * math.sqrt(0.16 / 300), (k, f, best_of)
        assert reached < 0.92, "the formula asks for far more than is needed"


@pytest.mark.parametrize("auc", [0.501, 0.505, 0.6, 0.99, 1.0])
@pytest.mark.parametrize("k", [0.5, 1, 2.5, 6, 32, 200])
@pytest.mark.filterwarnings("error")
def test_power_is_a_number_at_every_border(auc, k):
    for f in (1e-3, 0.05, 0.999999, 1.0):
        assert 0 <= power.power_of_e(f, 800, k, auc, 1000) <= 1
        size = power.log_size(f, auc, k, 1000, 0.8)
        assert size is None or power.power_of_e(f, size, k, auc, 1000) >= 0.8
    assert power.log_size(0.01, 0.501, k, 1000, 0.8) is None, "no log is large enough"


def test_between_whole_numbers_of_resamples_power_lies_between():
    two, half, three = (power.log_size(0.1, 0.9, k, 1000, 0.8) for k in (2, 2.5, 3))
    assert two > half > three


def test_a_small_share_takes_a_log_by_its_square():
    sizes = [power.log_size(f, 0.9, 4, 1000, 0.8) for f in (0.02, 0.01, 0.005)]
    assert sizes[1] / sizes[0] == pytest.approx(4, rel=0.1) == pytest.approx(sizes[2] / sizes[1], rel=0.1)


def test_the_detectable_effect_is_what_the_power_law_says():
    effect = power.detectable_effect(5000, 4, 0.05, 0.8)
    assert power.power_of_p(effect, 5000, 4, 1.0, 0.05) == pytest.approx(0.8)
    assert power.predicted_z(0.01, 13_000_000, 10**6, 0.55) == pytest.approx(6.245, abs=0.01)


def test_tails_against_scipy():
    ks = np.array([0, 1, 30, 64_238, 248_200])
    expected = scipy.stats.binom.sf(ks - 1, 248_200, 0.25)
    assert binomial_upper(ks, 248_200, 0.25) == pytest.approx(expected, rel=1e-9)
    assert binomial_upper(11, 10, 0.5) == 0
    assert gamma_upper(130.0, 100) == pytest.approx(scipy.stats.gamma.sf(130.0, 100), rel=1e-9)
    for k, n in ((0, 300), (3, 300), (300, 300)):
        theirs = scipy.stats.binomtest(k, n).proportion_ci(0.95, "exact")
        assert tails.clopper_pearson(k, n) == pytest.approx((theirs.low, theirs.high))
