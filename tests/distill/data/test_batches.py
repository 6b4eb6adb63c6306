"""The plan of steps: every document at its place, within the budget, the same each time."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from stillhouse.distill.data.batch_schedule import micro_batches, plan_steps
from stillhouse.recipe import Train

lengths_strategy = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@given(lengths_strategy, st.integers(1, 4), st.integers(10, 100), st.integers(0, 5))
def test_each_epoch_reads_every_document_once(lengths, epochs, batch_tokens, seed):
    plan = plan_steps(lengths, Train(epochs=epochs, batch_tokens=batch_tokens), seed=seed)
    read = [document for step in plan for document in step.documents]
    for epoch in range(epochs):
        assert sorted(read[epoch * len(lengths) : (epoch + 1) * len(lengths)]) == list(range(len(lengths)))


@given(lengths_strategy, st.integers(10, 100), st.integers(0, 5))
def test_steps_keep_to_the_budget_and_none_could_have_taken_more(lengths, batch_tokens, seed):
    plan = plan_steps(lengths, Train(epochs=2, batch_tokens=batch_tokens), seed=seed)
    for step in plan:
        assert step.tokens == sum(lengths[i] for i in step.documents)
        assert step.tokens <= batch_tokens or len(step.documents) == 1
    for step, following in pairwise(plan):
        assert step.tokens + lengths[following.documents[0]] > batch_tokens


def test_the_position_says_where_in_which_epoch_a_step_begins():
    plan = plan_steps([10] * 5, Train(epochs=2, batch_tokens=20), seed=0)
    assert [(step.epoch, step.index) for step in plan] == [(0, 0), (0, 2), (0, 4), (1, 1), (1, 3)]


def test_part_of_an_epoch_reads_that_share_of_the_documents():
    plan = plan_steps([10] * 8, Train(epochs=1.5, batch_tokens=10), seed=3)
    read = Counter(document for step in plan for document in step.documents)
    assert sorted(read.values()) == [1] * 4 + [2] * 4


def test_tokens_end_the_plan_with_the_document_that_reaches_them():
    plan = plan_steps([10] * 3, Train(tokens=45, batch_tokens=20), seed=0)
    assert sum(step.tokens for step in plan) == 50


def test_the_order_depends_on_the_seed_and_the_epoch_alone():
    settings = Train(epochs=2, batch_tokens=1)
    plan = [step.documents for step in plan_steps([1] * 20, settings, seed=1)]
    assert plan == [step.documents for step in plan_steps([1] * 20, settings, seed=1)]
    assert plan != [step.documents for step in plan_steps([1] * 20, settings, seed=2)]
    assert plan[:20] != plan[20:]


@pytest.mark.parametrize("padded", [False, True])
@given(lengths=lengths_strategy, micro_tokens=st.integers(10, 100))
def test_passes_keep_to_their_budget_and_lose_nothing(lengths, micro_tokens, padded):
    passes = micro_batches(range(len(lengths)), lengths, micro_tokens, padded=padded)
    assert sorted(i for batch in passes for i in batch) == list(range(len(lengths)))
    for batch in passes:
        widths = [lengths[i] for i in batch]
        cost = len(widths) * max(widths) if padded else sum(widths)
        assert cost <= micro_tokens or len(batch) == 1


def test_padded_passes_put_like_lengths_together():
    assert micro_batches([0, 1, 2, 3], [5, 50, 6, 49], 100, padded=True) == [(1, 3), (2, 0)]
