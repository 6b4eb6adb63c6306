"""Several teachers: each on its own documents, or averaged; against each one's own forward in float64."""

from __future__ import annotations

import math

import divergence_oracles as oracle
import numpy as np
import pytest
import torch
from tiny_training import VOCABULARY, documents_of, llama
from torch import Tensor

from stillhouse.distill.loss.fused_loss import fused_loss
from stillhouse.distill.loss.lm_head import LMHead
from stillhouse.distill.loss.teacher_rows import DenseRows, MixedRows, MixtureComponent, SampledRows, TopKRows
from stillhouse.distill.targets.ensemble import EnsembleMember, EnsembleSignal, join_rows
from stillhouse.distill.targets.teacher_signal import cache_targets
from stillhouse.recipe import Objective

CPU = torch.device("cpu")
DOCUMENTS = documents_of((5, 9, 12, 20, 7))
REQUESTS = [(3, DOCUMENTS[3].predicting),
            (0, DOCUMENTS[0].predicting[:2]), (1, DOCUMENTS[1].predicting[::-1]),
         (4, DOCUMENTS[4].predicting), (2, DOCUMENTS[2].predicting)]  # fmt: skip
N, D, V = 7, 4, 13


def teachers():
    """Two of other shapes and paddings: hidden states of 32 and 16 channels, 64 and 70 ids."""
    torch.manual_seed(0)
    return llama(), llama(hidden_size=16, num_hidden_layers=1, vocab_size=VOCABULARY + 6)


def logits(model, index: int, positions: np.ndarray) -> list[list[float]]:
    ids = torch.from_numpy(DOCUMENTS[index].ids.astype(np.int64))[None]
    with torch.no_grad():
        return model.double()(input_ids=ids, use_cache=False).logits[0, positions.copy()].tolist()


def signal_of(model, indices, objective, directory):
    documents = [DOCUMENTS[i] for i in indices]
    options = {"seed": 0, "dtype": "float32", "vocab_size": VOCABULARY}
    return cache_targets(model.float(), documents, objective, directory, **options)


@pytest.mark.parametrize("targets", ["hidden", "online", "topk"])
def test_routed_rows_are_each_teachers_own(tmp_path, targets):
    a, b = teachers()
    objective = Objective(targets=targets, top_k=5)
    routes = {0: (a, [0, 2, 3]), 1: (b, [1, 4])}
    members = [
        EnsembleMember(signal_of(model, own, objective, tmp_path / str(n)), own)
        for n, (model, own) in routes.items()
    ]
    rows = EnsembleSignal(members, VOCABULARY).rows(REQUESTS, CPU)
    assert len(rows) == sum(len(positions) for _, positions in REQUESTS)
    row = 0
    for index, positions in REQUESTS:
        model = next(model for model, own in routes.values() if index in own)
        for each in logits(model, index, positions):
            p = oracle.probabilities(each[:VOCABULARY])
            if isinstance(rows, MixedRows):
                probabilities = rows.raw_logits(slice(row, row + 1), VOCABULARY)[0].exp().tolist()
                assert probabilities == pytest.approx(p, rel=1e-3, abs=1e-6)
            else:
                assert isinstance(rows, TopKRows)
                listed = sorted(range(VOCABULARY), key=lambda i: -p[i])[:5]
                assert rows.ids_NK[row].tolist() == listed
                probabilities = rows.logp_NK1[row].exp().tolist()
                assert probabilities == pytest.approx(oracle.merged(p, listed), rel=2**-9)
            row += 1


def test_drawn_rows_of_two_teachers_keep_every_draw(tmp_path):
    a, b = teachers()
    objective = Objective(targets="sampled", top_k=12)
    alone = {n: signal_of(m, own, objective, tmp_path / str(n))
             for n, (m, own) in enumerate([(a, [0, 2, 3]), (b, [1, 4])])}  # fmt: skip
    members = [EnsembleMember(alone[0], [0, 2, 3]), EnsembleMember(alone[1], [1, 4])]
    rows = EnsembleSignal(members, VOCABULARY).rows(REQUESTS, CPU)
    assert isinstance(rows, SampledRows)
    row = 0
    for index, positions in REQUESTS:
        which, own_index = (0, [0, 2, 3].index(index)) if index in (0, 2, 3) else (1, [1, 4].index(index))
        own = alone[which].rows([(own_index, positions)], CPU)
        assert isinstance(own, SampledRows)
        for ids, counts in zip(own.ids_NK, own.counts_NK, strict=True):
            both = [
                {i: c for i, c in zip(x.tolist(), y.tolist(), strict=True) if c}
                for x, y in ((ids, counts), (rows.ids_NK[row], rows.counts_NK[row]))
            ]
            assert both[0] == both[1]
            row += 1


def test_averaged_rows_are_the_mean_of_the_distributions(tmp_path):
    """A third of one, two thirds of the other; the fifth document is a third teacher's alone."""
    a, b = teachers()
    third = llama(tie_word_embeddings=False)
    mixed = [0, 1, 2, 3]
    members = [
        EnsembleMember(signal_of(a, mixed, Objective(), tmp_path / "a"), mixed, 1 / 3),
        EnsembleMember(signal_of(b, mixed, Objective(), tmp_path / "b"), mixed, 2 / 3),
        EnsembleMember(signal_of(third, [4], Objective(), tmp_path / "c"), [4]),
    ]
    rows = EnsembleSignal(members, VOCABULARY).rows(REQUESTS, CPU)
    assert isinstance(rows, MixedRows)
    whole_NV = rows.raw_logits(slice(0, len(rows)), VOCABULARY).exp()
    row = 0
    for index, positions in REQUESTS:
        members_here = [(1.0, third)] if index == 4 else [(1 / 3, a), (2 / 3, b)]
        weighted_logits = [(w, logits(model, index, positions)) for w, model in members_here]
        for number in range(len(positions)):
            each = [(w, oracle.probabilities(rows[number][:VOCABULARY])) for w, rows in weighted_logits]
            expected = [math.fsum(w * p[i] for w, p in each) for i in range(VOCABULARY)]
            assert whole_NV[row].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-6)
            row += 1


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture_by_hand(rows: MixedRows, shared: int) -> list[list[float]]:
    mixed = [[0.0] * shared for _ in range(len(rows))]
    for share in rows.components:
        head = share.rows.head
        for row, hidden in zip(share.indices_n.tolist(), share.rows.hidden_ND, strict=True):
            raw = (head.scale * (head.weight_VD @ hidden)).tolist()
            raw = [head.softcap * math.tanh(x / head.softcap) if head.softcap else x for x in raw]
            for i, p in enumerate(oracle.probabilities(raw[:shared])):
                mixed[row][i] += share.weight * p
    return mixed


@pytest.mark.parametrize("kind", oracle.KINDS)
def test_loss_and_gradient_of_a_mixture(kind):
    """A row of each kind of company in float64: softened log of the mean, gradient by differences."""
    rows_by_teacher = [
        (DenseRows(numbers(5, D, seed=1), LMHead(numbers(V, D, seed=2), softcap=2.0)), [0, 1, 2, 4, 6], 0.3),
        (
            DenseRows(numbers(5, 3, seed=3), LMHead(numbers(V + 2, 3, seed=4), scale=0.6)),
            [0, 1, 2, 4, 6],
            0.7,
        ),
        (DenseRows(numbers(2, D, seed=5), LMHead(numbers(V, D, seed=6))), [3, 5], 1.0),
    ]
    rows = join_rows([(r, torch.tensor(indices), w) for r, indices, w in rows_by_teacher], N, V)
    assert isinstance(rows, MixedRows)
    objective = Objective(kind=kind, temperature=1.7)
    teacher = [[math.log(p) for p in row] for row in mixture_by_hand(rows, V)]
    hidden_ND = numbers(N, D, seed=7).requires_grad_()
    weight_VD = numbers(V, D, seed=8)
    loss = fused_loss(
        hidden_ND, LMHead(weight_VD), torch.zeros(N, dtype=torch.int64), rows, objective, chunk=3
    )

    def by_hand(flat) -> float:
        student_NV = torch.tensor(flat, dtype=torch.float64).view(N, D) @ weight_VD.T
        return math.fsum(
            oracle.divergence(s, t, objective) for s, t in zip(student_NV.tolist(), teacher, strict=True)
        )

    flat = hidden_ND.detach().flatten().tolist()
    assert loss.item() == pytest.approx(by_hand(flat), rel=1e-9)
    loss.backward()
    assert hidden_ND.grad is not None
    slopes = oracle.central_differences(by_hand, flat)
    assert hidden_ND.grad.flatten().tolist() == pytest.approx(slopes, rel=1e-5, abs=1e-7)


def test_a_teacher_alone_is_what_it_would_be_without_the_others():
    rows = DenseRows(numbers(N, D, seed=1), LMHead(numbers(V, D, seed=2)))
    alone = MixedRows((MixtureComponent(rows, torch.arange(N), 1.0),), N, V)
    hidden_ND, head = numbers(N, D, seed=7), LMHead(numbers(V, D, seed=8))
    labels = torch.zeros(N, dtype=torch.int64)
    losses = [
        fused_loss(hidden_ND, head, labels, each, Objective(kind="jsd")).item() for each in (rows, alone)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
