"""Exact tails and intervals against scipy."""

import numpy as np
import pytest
import scipy.stats

from stillhouse.stats import (
    SMALLEST,
    binomial_upper,
    clopper_pearson,
    gamma_upper,
    student_t,
    student_t_upper,
)


def test_tails_against_scipy():
    ks = np.array([0, 1, 30, 64_238, 248_200])
    expected = scipy.stats.binom.sf(ks - 1, 248_200, 0.25)
    assert binomial_upper(ks, 248_200, 0.25) == pytest.approx(expected, rel=1e-9)
    assert binomial_upper(11, 10, 0.5) == 0
    assert gamma_upper(130.0, 100) == pytest.approx(scipy.stats.gamma.sf(130.0, 100), rel=1e-9)
    for k, n in ((0, 300), (3, 300), (300, 300)):
        theirs = scipy.stats.binomtest(k, n).proportion_ci(0.95, "exact")
        assert clopper_pearson(k, n) == pytest.approx((theirs.low, theirs.high))


def test_student_t_against_scipy():
    assert student_t(0.95, 7) == pytest.approx(scipy.stats.t.ppf(0.975, 7))
    assert student_t_upper(2.3, 11) == pytest.approx(scipy.stats.t.sf(2.3, 11))
    assert student_t_upper(1e30, 50) == SMALLEST
