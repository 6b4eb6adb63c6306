"""Exact tails, against enumeration, scipy and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from stillhouse.stats import (
    SMALLEST,
    fisher_log_p,
    fixed_points_log_p,
    heads_log_p,
    p_from_log,
)


@pytest.mark.parametrize("n", [1, 2, 3, 6, 7])
def test_fixed_points_are_those_of_all_permutations_counted(n):
    fixed = [
        sum(place == label for place, label in enumerate(order)) for order in itertools.permutations(range(n))
    ]
    for hits in range(n + 1):
        share = sum(count >= hits for count in fixed) / len(fixed)
        if share:
            assert math.exp(fixed_points_log_p(hits, n)) == pytest.approx(share, rel=1e-12)


def test_all_of_many_units_in_place_is_one_permutation_of_all():
    assert fixed_points_log_p(1536, 1536) == pytest.approx(-math.lgamma(1537), rel=1e-12)
    # no permutation moves exactly one
    assert fixed_points_log_p(1535, 1536) == pytest.approx(-math.lgamma(1537), rel=1e-12)
    assert math.exp(fixed_points_log_p(3, 1536)) == pytest.approx(stats.poisson.sf(2, 1), rel=1e-9)


@pytest.mark.parametrize(("heads", "n"), [(0, 0), (0, 5), (3, 5), (60, 100), (100, 100), (700, 1000)])
def test_heads_agree_with_scipy(heads, n):
    assert math.exp(heads_log_p(heads, n)) == pytest.approx(stats.binom.sf(heads - 1, n, 0.5), rel=1e-9)


def test_fisher_agrees_with_scipy_and_goes_on_where_scipy_ends():
    ps = [0.2, 0.03, 0.7, 0.011, 1.0]
    ours = math.exp(fisher_log_p(np.log(ps).tolist()))
    assert ours == pytest.approx(stats.combine_pvalues(ps).pvalue, rel=1e-12)
    assert fisher_log_p([0.0, 0.0]) == 0.0
    assert fisher_log_p([-5000.0]) == pytest.approx(-5000.0)
    assert p_from_log(-5000.0) == SMALLEST
    assert p_from_log(math.log(0.25)) == pytest.approx(0.25)
