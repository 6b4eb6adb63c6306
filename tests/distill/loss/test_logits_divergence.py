"""`divergence` as a loss: values and gradients against autograd of the plain formulas."""

import math

import pytest
import torch
from torch.nn import functional as F

import stillhouse
from stillhouse.distill.loss import logits_divergence
from stillhouse.errors import RecipeError

KINDS = {
    "forward_kl": {}, "reverse_kl": {}, "jsd": {"beta": 0.3},
    "skew_forward_kl": {"alpha": 0.2}, "skew_reverse_kl": {"alpha": 0.2},
}  # fmt: skip


def plain(student, teacher, kind, temperature, alpha=0.1, beta=0.5):
    """The formulas as the papers write them, in probabilities, one a position."""
    q, p = (logits / temperature for logits in (student, teacher))
    q, p = q.softmax(-1), p.softmax(-1)

    def kl(a, b):
        return (a * (a.log() - b.log())).sum(-1)

    mixture = beta * p + (1 - beta) * q
    value = {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "jsd": lambda: beta * kl(p, mixture) + (1 - beta) * kl(q, mixture),
        "skew_forward_kl": lambda: kl(p, alpha * p + (1 - alpha) * q),
        "skew_reverse_kl": lambda: kl(q, (1 - alpha) * p + alpha * q),
    }[kind]()
    return temperature**2 * value


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 5, 11, generator=generator, dtype=torch.float64) * 3
    return student, torch.randn(2, 5, 11, generator=generator, dtype=torch.float64) * 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_value_and_gradient_are_those_of_the_plain_formula(logits, kind, temperature, monkeypatch):
    monkeypatch.setattr(logits_divergence, "CHUNK", 3)  # several chunks
    student, teacher = logits
    ours, theirs = (student.clone().requires_grad_() for _ in range(2))
    weights = torch.rand(2, 5, dtype=torch.float64)  # another gradient for each position
    loss = stillhouse.divergence(
        ours, teacher, kind=kind, temperature=temperature, reduction="none", **KINDS[kind]
    )
    expected = plain(theirs, teacher, kind, temperature, **KINDS[kind])
    torch.testing.assert_close(loss, expected)
    (loss * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    mean = stillhouse.divergence(student, teacher, kind=kind, temperature=temperature, **KINDS[kind])
    torch.testing.assert_close(mean, expected.mean().detach())


def test_forward_kl_is_torchs_kl_div(logits):
    student, teacher = logits
    rows = (student.log_softmax(-1).flatten(0, 1), teacher.log_softmax(-1).flatten(0, 1))
    expected = F.kl_div(*rows, log_target=True, reduction="batchmean")
    torch.testing.assert_close(stillhouse.divergence(student, teacher), expected)


def test_labels_are_those_of_transformers_and_a_mask_is_of_logits(logits):
    student, teacher = logits
    labels = torch.tensor([[-100, -100, 4, 7, -100], [1, -100, 3, -100, 9]])
    each = plain(student, teacher, "forward_kl", 1.0)
    # Position t predicts token t + 1: labels 4 and 7 of row 0, labels 3 and 9 of row 1.
    counted = [(0, 1), (0, 2), (1, 1), (1, 3)]
    expected = torch.stack([each[position] for position in counted])
    torch.testing.assert_close(stillhouse.divergence(student, teacher, labels=labels), expected.mean())
    mask = torch.zeros(2, 5, dtype=torch.bool)
    for position in counted:
        mask[position] = True
    torch.testing.assert_close(stillhouse.divergence(student, teacher, mask=mask), expected.mean())
    total = stillhouse.divergence(student, teacher, mask=mask, reduction="sum")
    torch.testing.assert_close(total, expected.sum())
    leaf = student.clone().requires_grad_()
    stillhouse.divergence(leaf, teacher, mask=mask).backward()
    assert leaf.grad[~mask].abs().sum() == 0
    assert leaf.grad[mask].abs().sum() > 0


def test_differently_padded_vocabularies_are_compared_over_the_shared_ids(logits):
    student, teacher = logits
    padded = torch.cat([student, torch.full((2, 5, 3), 50.0, dtype=torch.float64)], dim=-1).requires_grad_()
    loss = stillhouse.divergence(padded, teacher)
    torch.testing.assert_close(loss.detach(), plain(student, teacher, "forward_kl", 1.0).mean())
    loss.backward()
    assert padded.grad[..., 11:].abs().sum() == 0


def test_logits_are_not_changed_and_half_precision_is_summed_in_float32(logits):
    for dtype in (torch.float32, torch.bfloat16):
        student, teacher = (side.to(dtype) for side in logits)
        copies = student.clone(), teacher.clone()
        loss = stillhouse.divergence(student.requires_grad_(), teacher)
        assert loss.dtype == torch.float32
        exact = plain(student.detach().double(), teacher.double(), "forward_kl", 1.0).mean()
        assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
        loss.backward()
        assert student.grad.dtype == dtype
        assert torch.equal(student.detach(), copies[0]) and torch.equal(teacher, copies[1])


def test_gradients_accumulate_to_those_of_one_batch(logits):
    student, teacher = logits
    whole, parts = (student.clone().requires_grad_() for _ in range(2))
    stillhouse.divergence(whole, teacher).backward()
    for row in range(2):
        (stillhouse.divergence(parts[row], teacher[row], reduction="sum") / 10).backward()
    torch.testing.assert_close(parts.grad, whole.grad)


def test_nothing_counted_is_zero_and_not_nan(logits):
    leaf = logits[0].clone().requires_grad_()
    loss = stillhouse.divergence(leaf, logits[1], labels=torch.full((2, 5), -100))
    loss.backward()
    assert loss.item() == 0 and leaf.grad.abs().sum() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "uld"}, "no divergence 'uld'"),
        ({"kind": "kl"}, "forward_kl"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"kind": "jsd", "beta": 1.5}, "between 0 and 1"),
        ({"kind": "skew_forward_kl", "alpha": 1.0}, "alpha"),
        ({"reduction": "max"}, "reduction"),
        ({"mask": torch.ones(2, 4)}, r"\[2, 4\]"),
        ({"mask": torch.ones(2, 5), "labels": torch.ones(2, 5)}, "not both"),
    ],
)
def test_wrong_arguments_are_refused(logits, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        stillhouse.divergence(*logits, **options)
    if "kind" in options:
        assert isinstance(caught.value, RecipeError)


def test_logits_of_other_positions_are_refused(logits):
    with pytest.raises(ValueError, match="last dimension"):
        stillhouse.divergence(logits[0], logits[1][:, :-1])
