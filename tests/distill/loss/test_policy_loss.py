"""Advantages, token weights and the policy gradient: hand counts, and languages small enough to enumerate."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, strategies as st

from stillhouse.distill.loss.fused_loss import fused_loss
from stillhouse.distill.loss.lm_head import LMHead
from stillhouse.distill.loss.policy_loss import (
    PolicyRows,
    group_advantages,
    has_signal,
    overlong_penalty,
    policy_gradient,
    reference_penalty,
    surrogate,
    token_weights,
)
from stillhouse.distill.loss.teacher_rows import DenseRows
from stillhouse.recipe import Objective
from stillhouse.recipe.on_policy import Policy

TEXT = Objective(kind="cross_entropy")
FREE = Policy(clip_low=1.0, clip_high=1e9)


def rows(old, advantages, *, settings=FREE, temperature=1.0, weight=1.0, reference=None) -> PolicyRows:
    return PolicyRows(settings, temperature, weight, old, advantages, reference)


def test_advantages_of_a_group_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5]])
    assert group_advantages(rewards, "none").tolist() == [[0.5, -0.5, -0.5, 0.5], [0, 0, 0, 0]]
    by_std = group_advantages(rewards, "std")
    assert by_std[0].tolist() == pytest.approx([1, -1, -1, 1], rel=1e-3)
    assert by_std[1].tolist() == [0, 0, 0, 0]
    assert has_signal(rewards).tolist() == [True, False]


def test_token_weights_by_hand():
    assert token_weights([2, 3], "sequence", 10) == pytest.approx([1 / 4, 1 / 6])
    assert token_weights([2, 3], "token", 10) == pytest.approx([1 / 5, 1 / 5])
    assert token_weights([2, 3], "constant", 10) == pytest.approx([1 / 20, 1 / 20])


def test_overlong_answers_lose_linearly_and_at_most_one():
    assert overlong_penalty([5, 6, 8, 10, 12], 10, 4).tolist() == pytest.approx([0, 0, -0.5, -1, -1])
    assert overlong_penalty([5, 10], 10, 0).tolist() == [0, 0]


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(-2, 2))
def test_the_surrogate_is_ppos_and_its_slope_is_a_finite_difference(logp, old, advantage):
    settings = Policy(clip_low=0.2, clip_high=0.28)

    def loss(x: float) -> float:
        ratio = math.exp(x - old)
        return -min(ratio * advantage, min(max(ratio, 0.8), 1.28) * advantage)

    logp_n, old_n, advantage_n = (torch.tensor([x], dtype=torch.float64) for x in (logp, old, advantage))
    value, slope, clipped = surrogate(logp_n, old_n, advantage_n, settings)
    assert value.item() == pytest.approx(loss(logp), abs=1e-12)
    ratio = math.exp(logp - old)
    if min(abs(ratio - 0.8), abs(ratio - 1.28)) > 1e-4:  # there the loss has a corner
        assert slope.item() == pytest.approx((loss(logp + 1e-6) - loss(logp - 1e-6)) / 2e-6, abs=1e-4)
        assert clipped.item() == ((advantage > 0 and ratio > 1.28) or (advantage < 0 and ratio < 0.8))


def test_the_reference_penalty_is_unbiased_for_the_kl_and_never_negative():
    torch.manual_seed(0)
    q, p = torch.randn(2, 6, dtype=torch.float64).softmax(-1)
    penalty, slope = reference_penalty(q.log(), p.log())
    assert (q * penalty).sum().item() == pytest.approx((q * (q / p).log()).sum().item(), rel=1e-12)
    assert penalty.min() >= 0
    shifted = reference_penalty(q.log() + 1e-6, p.log())[0] - reference_penalty(q.log() - 1e-6, p.log())[0]
    assert torch.allclose(shifted / 2e-6, slope, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gradient_is_automatic_differentiations(temperature):
    """In float64: the loss written out with log_softmax, clip, KL and entropy, differentiated by torch."""
    torch.manual_seed(3)
    settings = Policy(clip_low=0.2, clip_high=0.28, reference_kl=0.3, entropy=0.2)
    logits = torch.randn(40, 9, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(9, (40,))
    old, reference = torch.randn(2, 40, dtype=torch.float64) * 0.5 - 2
    advantages = torch.randn(40, dtype=torch.float64)
    logq = (logits / temperature).log_softmax(-1)
    logp = logq[torch.arange(40), labels]
    ratio = (logp - old).exp()
    expected = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)
    expected = expected + 0.3 * ((reference - logp).exp() - (reference - logp) - 1)
    expected = 2.0 * (expected + 0.2 * (logq.exp() * logq).sum(-1))
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    task = rows(old, advantages, settings=settings, temperature=temperature, weight=2.0, reference=reference)
    value, slope = policy_gradient(logits.detach(), labels, task, slice(0, 40))
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(slope, gradient)
    assert 0 < torch.cat(task.measured["clipped"]).mean() < 1  # both sides of the clip were tried


def test_a_bandit_climbs_its_expected_reward():
    """Three arms, two pulls a group: over all nine outcomes the mean gradient is (1 − 1/2) dE[r]/dz.

    The group's mean holds a sample against itself too, which shrinks the gradient by 1 − 1/S and biases
    nothing else.
    """
    logits = torch.tensor([0.3, -0.5, 1.1], dtype=torch.float64)
    reward = torch.tensor([1.0, 0.0, 0.4], dtype=torch.float64)
    q = logits.softmax(-1)
    exact = q * (reward - (q * reward).sum())
    mean = torch.zeros(3, dtype=torch.float64)
    for pulls in itertools.product(range(3), repeat=2):
        advantages = group_advantages(reward[list(pulls)][None], "none")[0]
        labels = torch.tensor(pulls)
        task = rows(q.log()[labels], advantages)
        _, slope = policy_gradient(logits.repeat(2, 1), labels, task, slice(0, 2))
        weights = torch.tensor(token_weights([1, 1], "sequence", 1), dtype=torch.float64)
        mean -= q[pulls[0]] * q[pulls[1]] * (weights[:, None] * slope).sum(0)
    torch.testing.assert_close(mean, exact * (1 - 1 / 2))


def test_a_two_token_language_climbs_its_expected_reward():
    """Texts of two letters, the second drawn by a table of the first; all pairs of texts enumerated.

    With constant weights the mean gradient is (1 − 1/S) dE[r] / (samples · max_tokens) for each sample.
    """
    torch.manual_seed(5)
    first = torch.randn(2, dtype=torch.float64, requires_grad=True)
    second = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    texts = list(itertools.product(range(2), repeat=2))
    reward = dict(zip(texts, (0.0, 1.0, 0.3, 0.1), strict=True))
    logp = {w: first.log_softmax(-1)[w[0]] + second[w[0]].log_softmax(-1)[w[1]] for w in texts}
    expected_reward = sum(logp[w].exp() * reward[w] for w in texts)
    exact = torch.autograd.grad(expected_reward, (first, second))
    mean = [torch.zeros(2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)]
    for pair in itertools.product(texts, repeat=2):
        chance = (logp[pair[0]] + logp[pair[1]]).exp().item()
        gains = group_advantages(torch.tensor([[reward[w] for w in pair]], dtype=torch.float64), "none")[0]
        logits = torch.stack([row for w in pair for row in (first, second[w[0]])]).detach()
        labels = torch.tensor([letter for w in pair for letter in w])
        old = logits.log_softmax(-1)[torch.arange(4), labels]
        _, slope = policy_gradient(logits, labels, rows(old, gains.repeat_interleave(2)), slice(0, 4))
        slope = slope * token_weights([2, 2], "constant", 2)[0]
        for number, w in enumerate(pair):
            mean[0] -= chance * slope[2 * number]
            mean[1][w[0]] -= chance * slope[2 * number + 1]
    for average, gradient in zip(mean, exact, strict=True):
        torch.testing.assert_close(average, gradient * (1 - 1 / 2) / 2)


def test_policy_and_teacher_add_up_in_the_head():
    """Chunks, weights and both losses together are the two losses apart."""
    torch.manual_seed(7)
    hidden, weight = torch.randn(11, 6).double(), torch.randn(17, 6).double()
    labels = torch.randint(17, (11,))
    teacher = DenseRows(torch.randn(11, 5).double(), LMHead(torch.randn(13, 5).double()))
    factors = torch.rand(11).double()
    old, gains = torch.randn(11).double() - 3, torch.randn(11).double()
    objective = Objective(kind="reverse_kl")

    def gradient(policy_weight: float, teacher_weight: float, chunk: int = 4):
        leaf, head = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        task = rows(old, gains, weight=policy_weight, settings=Policy())
        loss = fused_loss(
            leaf, LMHead(head), labels, teacher, objective,
            chunk=chunk, weights_N=factors, policy=task, teacher_weight=teacher_weight,
        )  # fmt: skip
        loss.backward()
        return loss.item(), leaf.grad, head.grad

    both, policy, taught = gradient(0.7, 0.3), gradient(0.7, 0.0), gradient(0.0, 0.3)
    alone_leaf, alone_head = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    alone = 0.3 * fused_loss(alone_leaf, LMHead(alone_head), labels, teacher, objective, weights_N=factors)
    alone.backward()
    assert taught[0] == pytest.approx(alone.item())
    torch.testing.assert_close(taught[1], alone_leaf.grad)
    torch.testing.assert_close(taught[2], alone_head.grad)
    assert both[0] == pytest.approx(policy[0] + taught[0])
    for whole, one, other in zip(both[1:], policy[1:], taught[1:], strict=True):
        torch.testing.assert_close(whole, one + other)
    for whole, other in zip(both[1:], gradient(0.7, 0.3, chunk=100)[1:], strict=True):
        torch.testing.assert_close(whole, other)
