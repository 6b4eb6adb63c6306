"""pass@k and majority votes against enumeration of every subset and every tie-break."""

from __future__ import annotations

import itertools

import pytest
import scipy.stats
from hypothesis import given, strategies as st

from stillhouse.stats import majority, mean_over_prompts, pass_at_k


@given(st.integers(1, 9), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(answers, data):
    right = data.draw(st.integers(0, answers))
    k = data.draw(st.integers(1, answers))
    drawn = list(itertools.combinations([True] * right + [False] * (answers - right), k))
    assert pass_at_k(answers, right, k) == pytest.approx(sum(map(any, drawn)) / len(drawn))


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.booleans()), min_size=1, max_size=7))
def test_a_majority_vote_is_the_mean_over_tie_breaks_and_voters(ballots):
    votes, right = [vote for vote, _ in ballots], [float(good) for _, good in ballots]
    cast = [vote for vote in votes if vote is not None]
    winners = {vote for vote in cast if cast.count(vote) == max(map(cast.count, cast))}
    # draw a winner at random, then one of its voters
    outcomes = [good for vote, good in zip(votes, right, strict=True) if vote in winners]
    expected = sum(outcomes) / len(outcomes) if outcomes else 0.0
    assert majority(votes, right) == pytest.approx(expected)


def test_the_interval_is_students_t_over_prompts():
    values = [0.2, 0.4, 0.5, 0.3, 0.6]
    found = mean_over_prompts(values, 0.9)
    low, high = scipy.stats.t.interval(0.9, 4, loc=0.4, scale=scipy.stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert mean_over_prompts([1.0]).low is None
