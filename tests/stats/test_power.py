"""Power and log sizes against simulation and closed forms."""

import math

import numpy as np
import pytest
import scipy.stats
from rank_helpers import bets_of

from stillhouse.stats import (
    detectable_effect,
    log_betting_process,
    log_size,
    power_of_e,
    power_of_p,
    predicted_z,
    rank_test,
)


def simulated_log(rng, n, k, f, shift):
    """Scores of a log of which the share f was trained on."""
    scores = rng.normal(size=(n, k + 1))
    scores[: round(f * n), 0] += shift
    return scores


def test_the_power_law_matches_simulation():
    rng = np.random.default_rng(9)
    n, k, f, shift = 2000, 4, 0.1, 1.0
    auc = scipy.stats.norm.cdf(shift / math.sqrt(2))
    expected = predicted_z(f, n, k, auc)
    tests = [rank_test(simulated_log(rng, n, k, f, shift), lattice=0) for _ in range(400)]
    zs = np.array([test.z for test in tests])
    assert abs(zs.mean() - expected) < 4 * zs.std() / 20
    assert zs.std() == pytest.approx(1, abs=0.15)
    seen = np.mean([test.p_normal <= 0.01 for test in tests])
    assert seen == pytest.approx(power_of_p(f, n, k, auc, 0.01), abs=0.08)


def test_a_log_of_the_computed_size_reaches_its_target():
    rng = np.random.default_rng(10)
    for k, f, best_of in ((1, 0.5, 4), (4, 0.2, 3), (8, 0.05, 19)):
        auc = best_of / (best_of + 1)
        n = log_size(f, auc, k, 1000, 0.8)
        assert power_of_e(f, n, k, auc, 1000) >= 0.8 > power_of_e(f, n - 1, k, auc, 1000)
        ends = []
        for _ in range(300):
            scores = rng.random((n, k + 1))
            used = rng.random(n) < f
            scores[used, 0] = rng.random((used.sum(), best_of)).max(1)
            ends.append(log_betting_process(bets_of(scores))[-1])
        reached = np.mean(np.array(ends) >= math.log(1000))
        assert reached > 0.8 - 3 * math.sqrt(0.16 / 300), (k, f, best_of)
        assert reached < 0.92, "the formula asks for far more than is needed"


@pytest.mark.parametrize("auc", [0.501, 0.505, 0.6, 0.99, 1.0])
@pytest.mark.parametrize("k", [0.5, 1, 2.5, 6, 32, 200])
@pytest.mark.filterwarnings("error")
def test_power_is_a_number_at_every_border(auc, k):
    for f in (1e-3, 0.05, 0.999999, 1.0):
        assert 0 <= power_of_e(f, 800, k, auc, 1000) <= 1
        size = log_size(f, auc, k, 1000, 0.8)
        assert size is None or power_of_e(f, size, k, auc, 1000) >= 0.8
    assert log_size(0.01, 0.501, k, 1000, 0.8) is None, "no log is large enough"


def test_between_whole_numbers_of_resamples_power_lies_between():
    two, half, three = (log_size(0.1, 0.9, k, 1000, 0.8) for k in (2, 2.5, 3))
    assert two > half > three


def test_a_small_share_takes_a_log_by_its_square():
    sizes = [log_size(f, 0.9, 4, 1000, 0.8) for f in (0.02, 0.01, 0.005)]
    assert sizes[1] / sizes[0] == pytest.approx(4, rel=0.1) == pytest.approx(sizes[2] / sizes[1], rel=0.1)


def test_the_detectable_effect_is_what_the_power_law_says():
    effect = detectable_effect(5000, 4, 0.05, 0.8)
    assert power_of_p(effect, 5000, 4, 1.0, 0.05) == pytest.approx(0.8)
    assert predicted_z(0.01, 13_000_000, 10**6, 0.55) == pytest.approx(6.245, abs=0.01)
