"""Learning rates against values worked out by hand."""

import math

import pytest

from stillhouse.distill.training.lr_schedule import learning_rate_factor
from stillhouse.recipe import Train


def rates(total: int, **settings) -> list[float]:
    return [learning_rate_factor(step, total, Train(**settings)) for step in range(total)]


def test_wsd_rises_stays_and_falls():
    assert rates(10, schedule="wsd", warmup=0.2, decay=0.4) == pytest.approx(
        [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    )


def test_wsd_falls_towards_the_smallest_rate():
    assert rates(4, schedule="wsd", warmup=0, decay=0.5, min_rate=0.2) == pytest.approx([1, 1, 1, 0.6])


def test_cosine_falls_by_half_a_wave():
    half = math.sqrt(2) / 4
    assert rates(5, schedule="cosine", warmup=0.2) == pytest.approx([1, 1, 0.5 + half, 0.5, 0.5 - half])


def test_cosine_falls_towards_the_smallest_rate():
    assert rates(2, schedule="cosine", warmup=0, min_rate=0.1) == pytest.approx([1, 0.55])


def test_constant_stays_after_the_warm_up():
    assert rates(6, schedule="constant", warmup=0.5, decay=0.5) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])


def test_without_warm_up_or_decay_the_rate_is_the_peak():
    assert rates(3, schedule="wsd", warmup=0, decay=0) == [1, 1, 1]


def test_a_fall_longer_than_what_is_left_begins_after_the_warm_up():
    assert rates(4, schedule="wsd", warmup=0.5, decay=1.0) == pytest.approx([0.5, 1, 1, 0.5])


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "constant"])
@pytest.mark.parametrize("total", [1, 2, 3, 7])
def test_no_step_is_spent_at_rate_zero(schedule, total):
    assert all(0 < rate <= 1 for rate in rates(total, schedule=schedule, warmup=1.0, decay=1.0))
    assert all(0 < rate <= 1 for rate in rates(total, schedule=schedule, warmup=0.05, decay=0.3))
