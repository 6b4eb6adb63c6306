"""The loss over spans, against enumeration, the plain divergence, optimal transport, finite differences."""

import itertools
import math
from dataclasses import replace

import divergence_oracles as oracle
import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.special import rel_entr

from stillhouse.distill.loss import cross_tokenizer as module
from stillhouse.distill.loss.cross_tokenizer import SpanRows, ranked_distance, span_loss
from stillhouse.distill.loss.fused_loss import fused_loss
from stillhouse.distill.loss.lm_head import LMHead
from stillhouse.distill.loss.shared_vocabulary import SharedVocabulary
from stillhouse.distill.loss.teacher_rows import DenseRows
from stillhouse.recipe import Objective

KINDS = [
    *(Objective(kind=kind) for kind in oracle.KINDS),
    Objective(kind="jsd", beta=0.3),
    Objective(kind="skew_reverse_kl", temperature=1.7),
    Objective(kind="forward_kl", temperature=2.0, cross_entropy=0.4),
]
DOUBLE = torch.float64


def random_case(
    teacher_ids=9, student_ids=7, shared=5, *, spans=((0, 1, 0, 1), (1, 2, 1, 1), (3, 1, 2, 3), (4, 2, 6, 2))
):
    """Rows, heads and a vocabulary in which every shared token has a token of its own on both sides."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=DOUBLE)

    def classes(ids):
        return torch.cat([torch.arange(shared), torch.arange(ids - shared) % shared])

    table = torch.tensor(spans).reshape(-1, 4)
    teacher_rows, student_rows = 6, 9
    rows = SpanRows(
        DenseRows(normal(teacher_rows, 4), LMHead(normal(teacher_ids, 4), normal(teacher_ids))),
        torch.randint(0, teacher_ids, (teacher_rows,), generator=generator),
        table,
        SharedVocabulary(classes(teacher_ids), classes(student_ids), shared),
    )
    labels = torch.randint(0, student_ids, (student_rows,), generator=generator)
    return normal(student_rows, 3), LMHead(normal(student_ids, 3), normal(student_ids)), labels, rows


# A language of letters a, b and a full stop that ends it; the teacher writes "ab" and "ba" as tokens, too.
TEACHER_TOKENS = ["a", "b", ".", "ab", "ba"]
STUDENT_TOKENS = ["a", "b", ".", "bb"]
TEACHER_COUNTS = {"ab": "a", "ba": "b"}  # what the student would begin them with
STUDENT_COUNTS = {"bb": "b"}


def language(tokens, seed):
    """Next-token probabilities after every text of at most two tokens, as {text tokens: [V]}."""
    generator = np.random.default_rng(seed)
    return {
        text: generator.dirichlet(np.ones(len(tokens)))
        for length in range(3)
        for text in itertools.product(tokens, repeat=length)
    }


def outcomes(table, tokens, counts, observed, other_first):
    """Distributions of a text's first shared token, and of whether a text that begins like the span continues
    as the observed tokens, by summing over all texts of three tokens.

    The shared tokens of the two sides' first tokens are one outcome.
    """
    merged = {counts.get(observed[0], observed[0]), other_first}
    first_token: dict[str, float] = {}
    continuation = {"as observed": 0.0, "otherwise": 0.0}
    for text in itertools.product(range(len(tokens)), repeat=3):
        spelled = tuple(tokens[n] for n in text)
        p = math.prod(table[spelled[:k]][text[k]] for k in range(3))
        first = counts.get(spelled[0], spelled[0])
        name = "like the span" if first in merged else first
        first_token[name] = first_token.get(name, 0) + p
        if spelled[: len(observed)] == observed:
            continuation["as observed"] += p
        elif first in merged:
            continuation["otherwise"] += p
    likely = sum(continuation.values())
    return first_token, {name: p / likely for name, p in continuation.items()}


@pytest.mark.parametrize(
    ("teacher_says", "student_says"),
    [
        (("ab",), ("a", "b")),
        (("b", "b"), ("bb",)),
        (("b", "ab"), ("b", "a", "b")),  # not the smallest spans, but spans all the same
        (("a", "ba"), ("a", "bb")),  # unlike texts: the two ways to begin need not be one
        (("ba",), ("a", "b", ".")),
    ],
)
def test_a_span_is_compared_as_enumeration_of_all_texts_says(teacher_says, student_says):
    sides = []
    for tokens, counts, observed, seed in (
        (TEACHER_TOKENS, TEACHER_COUNTS, teacher_says, 1),
        (STUDENT_TOKENS, STUDENT_COUNTS, student_says, 2),
    ):
        table = language(tokens, seed)
        rows = [np.log(table[observed[:k]]) for k in range(len(observed))]
        sides.append((table, tokens, counts, observed, torch.tensor(np.array(rows))))
    firsts = [counts.get(observed[0], observed[0]) for _, _, counts, observed, _ in sides]
    expected = 0.0
    for p, q in zip(outcomes(*sides[0][:4], firsts[1]), outcomes(*sides[1][:4], firsts[0]), strict=True):
        assert set(p) == set(q)
        assert sum(p.values()) == pytest.approx(1)
        expected += sum(rel_entr(p[name], q[name]) for name in p)
    loss = over_one_span(sides, Objective(kind="forward_kl"))
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def over_one_span(sides, objective):
    """The loss where logits are hidden states times the identity."""
    shared = ["a", "b", "."]
    classes = [
        torch.tensor([shared.index(counts.get(token, token)) for token in tokens])
        for _, tokens, counts, *_ in sides
    ]
    ids = [torch.tensor([tokens.index(token) for token in observed]) for _, tokens, _, observed, _ in sides]
    heads = [LMHead(torch.eye(len(tokens), dtype=DOUBLE)) for _, tokens, *_ in sides]
    rows = SpanRows(
        DenseRows(sides[0][-1], heads[0]),
        ids[0],
        torch.tensor([[0, len(ids[0]), 0, len(ids[1])]]),
        SharedVocabulary(classes[0], classes[1], len(shared)),
    )
    return span_loss(sides[1][-1], heads[1], ids[1], rows, objective)


@pytest.mark.parametrize("objective", KINDS, ids=lambda o: f"{o.kind}-{o.temperature}-{o.cross_entropy}")
def test_one_tokenizer_gives_the_plain_divergence_and_its_gradient(objective):
    hidden_ND, head, labels_N, _ = random_case()
    generator = torch.Generator().manual_seed(5)
    teacher = DenseRows(
        torch.randn(9, 4, generator=generator, dtype=DOUBLE),
        LMHead(torch.randn(7, 4, generator=generator, dtype=DOUBLE)),
    )
    one_each = torch.stack(
        [torch.arange(9), torch.ones(9).long(), torch.arange(9), torch.ones(9).long()], dim=1
    )
    same = SharedVocabulary(torch.arange(7), torch.arange(7), 7)
    rows = SpanRows(teacher, labels_N, one_each, same)
    results = []
    for loss_of in (
        lambda h, w: span_loss(h, replace(head, weight_VD=w), labels_N, rows, objective),
        lambda h, w: fused_loss(h, replace(head, weight_VD=w), labels_N, teacher, objective),
    ):
        inputs = [x.clone().requires_grad_() for x in (hidden_ND, head.weight_VD)]
        loss = loss_of(*inputs)
        results.append((loss.detach(), *torch.autograd.grad(loss, inputs)))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "objective",
    [*KINDS, Objective(kind="uld"), Objective(kind="uld", cross_entropy=0.4)],
    ids=lambda o: f"{o.kind}-{o.temperature}-{o.cross_entropy}",
)
def test_gradients_are_those_of_finite_differences(objective):
    hidden_ND, head, labels_N, rows = random_case()
    assert head.bias_V is not None

    def loss(hidden_ND, weight_VD, bias_V):
        return span_loss(hidden_ND, LMHead(weight_VD, bias_V), labels_N, rows, objective)

    inputs = [x.clone().requires_grad_() for x in (hidden_ND, head.weight_VD, head.bias_V)]
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize(
    "objective", [*KINDS, Objective(kind="uld")], ids=lambda o: f"{o.kind}-{o.temperature}-{o.cross_entropy}"
)
def test_chunks_change_nothing(objective, monkeypatch):
    hidden_ND, head, labels_N, rows = random_case()
    results = []
    for entries in (module.MAX_CHUNK_ENTRIES, 1, 20):
        monkeypatch.setattr(module, "MAX_CHUNK_ENTRIES", entries)
        inputs = [x.clone().requires_grad_() for x in (hidden_ND, head.weight_VD)]
        loss = span_loss(inputs[0], replace(head, weight_VD=inputs[1]), labels_N, rows, objective)
        results.append((loss.detach(), *torch.autograd.grad(loss, inputs)))
    for other in results[1:]:
        for whole, cut in zip(results[0], other, strict=True):
            torch.testing.assert_close(whole, cut, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "uld"])
def test_padded_rows_count_for_nothing(kind):
    hidden_ND, head, labels_N, rows = random_case()
    assert head.bias_V is not None
    plain = span_loss(hidden_ND, head, labels_N, rows, Objective(kind=kind))
    wide = torch.cat([head.weight_VD, torch.full((3, 3), 50.0, dtype=DOUBLE)]).requires_grad_()
    bias_V = torch.cat([head.bias_V, torch.full((3,), 9.0, dtype=DOUBLE)])
    own = rows.teacher.head
    assert own.bias_V is not None
    padded = replace(
        rows.teacher,
        head=LMHead(torch.cat([own.weight_VD, own.weight_VD]), torch.cat([own.bias_V, own.bias_V + 9])),
    )
    loss = span_loss(
        hidden_ND, LMHead(wide, bias_V), labels_N, replace(rows, teacher=padded), Objective(kind=kind)
    )
    assert loss.item() == pytest.approx(plain.item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, wide)
    assert torch.count_nonzero(gradient[-3:]) == 0


def test_sides_that_agree_have_no_divergence_though_their_tokens_differ():
    """Both say "a" and then "b" with probability 0.24, the teacher in one token."""
    teacher = [(("ab",), [0.36, 0.3, 0.1, 0.24, 0.0])]
    student = [(("a", "b"), [0.6, 0.3, 0.1, 0.0]), (("b",), [0.5, 0.4, 0.1, 0.0])]
    sides = [
        (
            None,
            TEACHER_TOKENS,
            TEACHER_COUNTS,
            ("ab",),
            torch.tensor([row for _, row in teacher], dtype=DOUBLE).log(),
        ),
        (
            None,
            STUDENT_TOKENS,
            STUDENT_COUNTS,
            ("a", "b"),
            torch.tensor([row for _, row in student], dtype=DOUBLE).log(),
        ),
    ]
    for kind in ("forward_kl", "reverse_kl", "jsd"):
        loss = over_one_span([(*side[:4], side[4].clamp_min(-300)) for side in sides], Objective(kind=kind))
        assert loss.item() == pytest.approx(0, abs=1e-9)


def test_ranked_distance_is_the_cheapest_transport_between_probabilities():
    """Every pairing of the two lists, the shorter filled up with zeros, costs at least as much."""
    generator = np.random.default_rng(0)
    p_NV, q_NV = generator.dirichlet(np.full(11, 0.3), 20), generator.dirichlet(np.full(7, 0.3), 20)
    expected = []
    for p, q in zip(p_NV, np.pad(q_NV, ((0, 0), (0, 4))), strict=True):
        cost = np.abs(p[:, None] - q[None])
        expected.append(cost[linear_sum_assignment(cost)].sum())
    for ours in (
        ranked_distance(torch.from_numpy(q_NV), torch.from_numpy(p_NV)),
        ranked_distance(torch.from_numpy(p_NV), torch.from_numpy(q_NV)),
    ):
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12)


def test_uld_reads_the_first_row_of_each_span():
    hidden_ND, head, labels_N, rows = random_case()
    expected = 0.0
    for t, _, s, _ in rows.spans_S4.tolist():
        p = torch.softmax(rows.teacher.head.logits(rows.teacher.hidden_ND[t : t + 1])[0] / 1.5, -1).numpy()
        q = torch.softmax(head.logits(hidden_ND[s : s + 1])[0] / 1.5, -1).numpy()
        expected += np.abs(np.sort(p)[::-1] - np.pad(np.sort(q)[::-1], (0, 2))).sum()
    loss = span_loss(hidden_ND, head, labels_N, rows, Objective(kind="uld", temperature=1.5))
    assert loss.item() == pytest.approx(1.5**2 * expected, rel=1e-12)


def test_without_spans_only_the_text_counts():
    hidden_ND, head, labels_N, rows = random_case(spans=())
    hidden_ND.requires_grad_()
    loss = span_loss(hidden_ND, head, labels_N, rows, Objective(kind="forward_kl"))
    assert loss.item() == 0
    assert torch.count_nonzero(torch.autograd.grad(loss, hidden_ND)[0]) == 0
    half = span_loss(hidden_ND, head, labels_N, rows, Objective(kind="forward_kl", cross_entropy=0.5))
    text = fused_loss(hidden_ND, head, labels_N, None, Objective(kind="cross_entropy"))
    assert half.item() == pytest.approx(text.item() / 2)


def test_certain_sides_stay_finite():
    """Probabilities that are 0 or 1 in float32, on either side, give no NaN."""
    certain = torch.tensor([[200.0, 0, 0, 0, 0], [0, 200.0, 0, 0, 0]])
    other = torch.tensor([[0.0, 0, 200.0, 0]], requires_grad=True)
    vocabulary = SharedVocabulary(torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 1, 2, 1]), 3)
    rows = SpanRows(
        DenseRows(certain, LMHead(torch.eye(5))),
        torch.tensor([0, 1]),
        torch.tensor([[0, 2, 0, 1]]),
        vocabulary,
    )
    for kind in ("forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "uld"):
        loss = span_loss(other, LMHead(torch.eye(4)), torch.tensor([3]), rows, Objective(kind=kind))
        (gradient,) = torch.autograd.grad(loss, other)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()
