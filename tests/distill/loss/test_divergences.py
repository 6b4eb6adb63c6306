"""Each divergence against scipy on single rows, its gradient against differences, and known properties."""

import math

import divergence_oracles as oracle
import pytest
import torch
from divergence_oracles import KINDS
from hypothesis import given, settings, strategies as st

from stillhouse.distill.loss.logit_losses import (
    Distribution,
    cross_entropy,
    loss_and_gradient,
    objective_divergence,
    require_supported,
    sampled_forward_kl,
    topk_divergence,
)
from stillhouse.errors import RecipeError
from stillhouse.recipe import Objective

quick = settings(max_examples=60, deadline=None)

logit = st.floats(-12, 12)
pairs = st.integers(2, 8).flatmap(
    lambda v: st.tuples(st.lists(logit, min_size=v, max_size=v), st.lists(logit, min_size=v, max_size=v))
)
inner = st.floats(0.01, 0.99)
objectives = st.builds(
    Objective, kind=st.sampled_from(KINDS), alpha=inner, beta=inner, temperature=st.floats(0.5, 4)
)


def row(values) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def loss(student, teacher, objective) -> float:
    return objective_divergence(row(student), row(teacher), objective).item()


def gradient(student, teacher, objective) -> list[float]:
    """By the student's logits, for distributions at temperature 1."""
    q, p = (Distribution.from_logits(row(side)) for side in (student, teacher))
    return loss_and_gradient(q, p, objective)[1][0].tolist()


@quick
@given(pairs, objectives)
def test_values_are_scipys(pair, objective):
    assert loss(*pair, objective) == pytest.approx(oracle.divergence(*pair, objective), rel=1e-9, abs=1e-11)


@quick
@given(pairs, objectives)
def test_gradients_are_the_slope_of_scipys_values(pair, objective):
    student, teacher = pair
    at_one = Objective(kind=objective.kind, alpha=objective.alpha, beta=objective.beta)
    slopes = oracle.central_differences(lambda s: oracle.divergence(s, teacher, at_one), student)
    assert gradient(student, teacher, at_one) == pytest.approx(slopes, rel=1e-5, abs=1e-8)


@quick
@given(pairs, objectives)
def test_automatic_differentiation_sees_the_temperature(pair, objective):
    student, teacher = pair
    leaf = row(student).requires_grad_()
    objective_divergence(leaf, row(teacher), objective).sum().backward()
    assert leaf.grad is not None
    slopes = oracle.central_differences(lambda s: oracle.divergence(s, teacher, objective), student)
    assert leaf.grad[0].tolist() == pytest.approx(slopes, rel=1e-5, abs=1e-7)


@quick
@given(pairs, objectives, st.floats(-5, 5))
def test_zero_at_equality_whatever_is_added_to_the_logits(pair, objective, shift):
    shifted = [x + shift for x in pair[0]]
    assert loss(shifted, pair[0], objective) == pytest.approx(0, abs=1e-12)
    assert gradient(shifted, pair[0], objective) == pytest.approx([0] * len(shifted), abs=1e-12)


@quick
@given(pairs, objectives)
def test_never_negative_and_a_shift_of_all_logits_changes_nothing(pair, objective):
    assert loss(*pair, objective) >= -1e-12
    assert sum(gradient(*pair, objective)) == pytest.approx(0, abs=1e-9)


@quick
@given(pairs, st.floats(0.01, 0.99))
def test_jsd_is_at_most_the_entropy_of_its_weights(pair, beta):
    """Lin 1991, theorem 4 with two distributions."""
    entropy = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert loss(*pair, Objective(kind="jsd", beta=beta)) <= entropy + 1e-12


@quick
@given(pairs)
def test_jsd_in_the_middle_is_symmetric(pair):
    objective = Objective(kind="jsd", beta=0.5)
    assert loss(*pair, objective) == pytest.approx(loss(*pair[::-1], objective), abs=1e-12)


@quick
@given(pairs, st.floats(0.01, 0.99))
def test_skew_is_at_most_minus_log_alpha_and_mirrors(pair, alpha):
    forward = Objective(kind="skew_forward_kl", alpha=alpha)
    reverse = Objective(kind="skew_reverse_kl", alpha=alpha)
    assert loss(*pair, forward) <= -math.log(alpha) + 1e-12
    assert loss(*pair, reverse) == pytest.approx(loss(*pair[::-1], forward), abs=1e-12)


NEAR = ([0.3, -1.0, 2.0, 0.1], [1.0, 0.5, -0.7, 0.2])


@pytest.mark.parametrize(("kind", "beta", "limit"), [("jsd", 0.0, "forward_kl"), ("jsd", 1.0, "reverse_kl")])
def test_jsd_tends_to_the_two_kls_and_is_them_at_the_ends(kind, beta, limit):
    """JSD/β → forward KL as β → 0, JSD/(1−β) → reverse KL as β → 1; at the ends themselves, undivided."""
    expected = loss(*NEAR, Objective(kind=limit))
    assert loss(*NEAR, Objective(kind=kind, beta=beta)) == expected
    errors = []
    for small in (1e-2, 1e-3, 1e-4):
        near = small if beta == 0 else 1 - small
        errors.append(abs(loss(*NEAR, Objective(kind="jsd", beta=near)) / small - expected))
    assert errors[2] < errors[1] / 5 < errors[0] / 25
    assert errors[2] < 1e-3


@pytest.mark.parametrize("direction", ["forward_kl", "reverse_kl"])
def test_skew_tends_to_plain_kl_and_is_it_at_alpha_zero(direction):
    expected = loss(*NEAR, Objective(kind=direction))
    kind = f"skew_{direction}"
    assert loss(*NEAR, Objective(kind=kind, alpha=0.0)) == pytest.approx(expected, rel=1e-14)
    errors = [abs(loss(*NEAR, Objective(kind=kind, alpha=a)) - expected) for a in (1e-2, 1e-3, 1e-4)]
    assert errors[2] < errors[1] / 5 < errors[0] / 25


@pytest.mark.parametrize("direction", ["forward_kl", "reverse_kl"])
def test_high_temperature_is_matching_logits(direction):
    """Hinton et al. 2015, section 2.1: T² KL → Σ (s_i − t_i)² / 2V for logits of mean zero."""
    student, teacher = NEAR
    centred = [[x - sum(side) / len(side) for x in side] for side in NEAR]
    expected = sum((s - t) ** 2 for s, t in zip(*centred, strict=True)) / (2 * len(student))
    got = loss(student, teacher, Objective(kind=direction, temperature=1e4))
    assert got == pytest.approx(expected, rel=1e-3)


@quick
@given(st.lists(logit, min_size=2, max_size=8), st.data())
def test_cross_entropy(student, data):
    label = data.draw(st.integers(0, len(student) - 1))
    value, slope = cross_entropy(row(student), torch.tensor([label]))
    assert value.item() == pytest.approx(oracle.cross_entropy(student, label), rel=1e-9, abs=1e-11)
    slopes = oracle.central_differences(lambda s: oracle.cross_entropy(s, label), student)
    assert slope[0].tolist() == pytest.approx(slopes, rel=1e-5, abs=1e-8)


def topk(student, teacher, listed, objective) -> tuple[float, list[float]]:
    teacher_logp = row(oracle.merged(oracle.probabilities(teacher), listed)).log()
    value, slope = topk_divergence(row(student), torch.tensor([listed]), teacher_logp, objective)
    return value.item(), slope[0].tolist()


@quick
@given(pairs, objectives, st.data())
def test_topk_is_the_divergence_of_the_merged_distributions(pair, objective, data):
    student, teacher = pair
    order = data.draw(st.permutations(range(len(student))))
    listed = order[: data.draw(st.integers(1, len(student) - 1))]

    def merged(s):
        p, q = oracle.probabilities(teacher), oracle.probabilities(s)
        return oracle.between(oracle.merged(p, listed), oracle.merged(q, listed), objective)

    value, slope = topk(student, teacher, listed, objective)
    assert value == pytest.approx(merged(student), rel=1e-9, abs=1e-11)
    assert slope == pytest.approx(oracle.central_differences(merged, student), rel=1e-5, abs=1e-8)
    assert value <= oracle.between(*map(oracle.probabilities, (teacher, student)), objective) + 1e-11


@quick
@given(pairs, objectives)
def test_topk_with_one_id_in_the_tail_is_the_whole_divergence(pair, objective):
    listed = list(range(1, len(pair[0])))
    at_one = Objective(kind=objective.kind, alpha=objective.alpha, beta=objective.beta)
    assert topk(*pair, listed, at_one)[0] == pytest.approx(loss(*pair, at_one), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_topk_keeps_its_digits_when_the_student_leaves_nothing_for_the_tail(kind):
    """One minus a sum would round the student's tail, e^-60, to zero; float32 on purpose."""
    student, teacher = [0.0, -60.0, -61.0], [0.0, -3.0, -4.0]
    teacher_logp = torch.tensor([oracle.merged(oracle.probabilities(teacher), [0])]).log()
    objective = Objective(kind=kind)
    value, slope = topk_divergence(torch.tensor([student]), torch.tensor([[0]]), teacher_logp, objective)
    p, q = (oracle.merged(oracle.probabilities(x), [0]) for x in (teacher, student))
    assert value.item() == pytest.approx(oracle.between(p, q, objective), rel=1e-5)
    assert torch.isfinite(slope).all()


@quick
@given(st.lists(logit, min_size=2, max_size=8), st.data())
def test_drawn_ids_in_the_teachers_proportions_give_forward_kl(student, data):
    """Counts c/n equal to the teacher's probabilities: KL plus the teacher's entropy, and KL's gradient."""
    size = len(student)
    counts = data.draw(st.lists(st.integers(1, 9), min_size=size, max_size=size))
    p = [c / sum(counts) for c in counts]
    value, slope = sampled_forward_kl(row(student), torch.arange(size)[None], torch.tensor([counts]))
    entropy = -sum(x * math.log(x) for x in p)
    expected = oracle.kl(p, oracle.probabilities(student)) + entropy
    assert value.item() == pytest.approx(expected, rel=1e-9)
    teacher = [math.log(x) for x in p]
    kl_slope = oracle.central_differences(
        lambda s: oracle.divergence(s, teacher, Objective(kind="forward_kl")), student
    )
    assert slope[0].tolist() == pytest.approx(kl_slope, rel=1e-5, abs=1e-8)


def test_unused_places_of_drawn_ids_count_for_nothing():
    student = row([0.3, 1.0, -2.0])
    short = sampled_forward_kl(student, torch.tensor([[2, 0]]), torch.tensor([[3, 1]]))
    padded = sampled_forward_kl(student, torch.tensor([[2, 0, 0, 0]]), torch.tensor([[3, 1, 0, 0]]))
    assert torch.equal(short[0], padded[0])
    assert torch.equal(short[1], padded[1])


@pytest.mark.parametrize("kind", KINDS)
def test_reductions_are_float32_for_bfloat16_logits(kind):
    """A vocabulary of 20,000 summed in bfloat16 would be off by percents; the logits' own rounding is not."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(3, 20_000, generator=generator).bfloat16()
    teacher = (student.float() + 0.3 * torch.randn(3, 20_000, generator=generator)).bfloat16()
    objective = Objective(kind=kind)
    values = objective_divergence(student, teacher, objective)
    assert values.dtype == torch.float32
    exact = [
        oracle.divergence(s, t, objective) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    assert values.tolist() == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "forward_kl"])
def test_drawn_ids_serve_forward_kl_only(kind):
    with pytest.raises(RecipeError, match="sampled"):
        require_supported(Objective(kind=kind, targets="sampled"))


@pytest.mark.parametrize("kind", ["skew_forward_kl", "skew_reverse_kl"])
def test_an_objective_that_is_always_zero_is_refused(kind):
    with pytest.raises(RecipeError, match="alpha"):
        require_supported(Objective(kind=kind, alpha=1.0))


@pytest.mark.parametrize("targets", ["hidden", "topk", "online"])
@pytest.mark.parametrize("kind", ["cross_entropy", *KINDS])
def test_other_targets_serve_every_objective(kind, targets):
    require_supported(Objective(kind=kind, targets=targets))


def test_the_forward_end_of_jsd_may_use_drawn_ids():
    require_supported(Objective(kind="jsd", beta=0.0, targets="sampled"))
