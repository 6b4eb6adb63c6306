"""The loss for teacher and student with different tokenizers, over the spans of an answer.

The spans are those of :mod:`stillhouse.distill.data.token_alignment`. Two ways to compare the distributions
at the start of a span:

- **A divergence over shared tokens.** Each distribution is summed over the tokens that both have
  (:mod:`.shared_vocabulary`), and any divergence of :mod:`stillhouse.divergences` is taken between the two
  sums. A span of several tokens adds the divergence between two binary distributions: given that a text
  begins like this span, does it continue as the span's text? The probability of the text is that of its first
  token times that of each later one (the chain rule, as in GOLD, Patiño et al. 2025). For forward KL the sum
  is the chain rule of divergences, with the observed first token in place of the average over all, so tokens
  inside a span have the same weight as any other. All distributions sum to 1, and the loss is 0 where the
  sides agree.
  (GOLD scales the whole first distribution by the chain; its sums are below 1, and differ between sides that
  agree.) With one tokenizer every span is one token, every token is shared, and the result is the plain
  divergence.
- **Universal Logit Distillation** (``uld``, Boizard et al. 2024, arXiv:2402.12030): the probabilities of each
  side in descending order, the shorter list padded with zeros, and the sum of absolute differences. It needs
  no correspondence of tokens and uses none: which token is likely plays no part.

Both are computed for a few spans at a time together with their gradients, so that no [tokens, vocabulary]
tensor of the whole batch exists. Logits, softmax and sums are in float32 (float64 for float64).

Shapes: N student rows, M teacher rows, D hidden size, S spans, C spans of a chunk, R rows of a chunk, V a
vocabulary, K shared tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stillhouse.distill.loss.fused_loss import PrecomputedGradients, fused_loss
from stillhouse.distill.loss.lm_head import LMHead
from stillhouse.distill.loss.logit_losses import (
    divide_by_temperature,
    loss_and_gradient,
    reduction_dtype,
)
from stillhouse.distill.loss.shared_vocabulary import SharedVocabulary
from stillhouse.distill.loss.teacher_rows import DenseRows
from stillhouse.divergences import Distribution
from stillhouse.recipe import Objective

MAX_CHUNK_ENTRIES = 2**24
"""Entries of a chunk's logits, of the larger vocabulary: 64 MB in float32, of which a few exist at once."""


@dataclass(frozen=True, eq=False)
class SpanRows:
    """The teacher's distributions for a batch, over its own tokens.

    Args:
        teacher: M rows, of the teacher's tokens that lie in spans.
        labels_M: those tokens, int64.
        spans_S4: int64, on the CPU: the teacher's first row and its number of rows, the student's first row
            and its number of rows; spans do not overlap, and are in the student's order.
        vocabulary: the shared token of each id of either side.
    """

    teacher: DenseRows
    labels_M: Tensor
    spans_S4: Tensor
    vocabulary: SharedVocabulary


def span_loss(
    hidden_ND: Tensor, head: LMHead, labels_N: Tensor, rows: SpanRows, objective: Objective
) -> Tensor:
    """The objective summed over spans, with its share of cross-entropy summed over the N rows; a scalar.

    Divide it by the number of counted tokens of the step, like ``fused_loss``. If spans have several of the
    student's tokens there are fewer spans than tokens, and the divergence weighs less in proportion.

    Args:
        hidden_ND: the student's last hidden states where its counted tokens are predicted.
        labels_N: those tokens, int64.
    """
    share = objective.cross_entropy_weight
    loss = hidden_ND.new_zeros((), dtype=reduction_dtype(hidden_ND.dtype))
    if share > 0:
        text = replace(objective, kind="cross_entropy")
        loss = loss + share * fused_loss(hidden_ND, head, labels_N, None, text)
    if share < 1:
        task = _SpanLossInputs(head, labels_N, rows, objective, torch.is_grad_enabled())
        over_spans = _SpanLoss.apply(hidden_ND, head.weight_VD, head.bias_V, task)
        loss = loss + (1 - share) * over_spans  # pyright: ignore[reportOperatorIssue]
    return loss


@dataclass(frozen=True, eq=False)
class _SpanLossInputs:
    """Arguments of :class:`_SpanLoss` that get no gradient."""

    head: LMHead
    labels_N: Tensor
    rows: SpanRows
    objective: Objective
    differentiate: bool


class _SpanLoss(PrecomputedGradients):
    """Computes loss and gradients chunk by chunk, with automatic differentiation inside a chunk."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, task: _SpanLossInputs
    ) -> Tensor:
        # Inside forward() gradients are always disabled, so the caller's mode is an argument.
        needed = [task.differentiate and needs for needs in ctx.needs_input_grad[:3]]
        wide = reduction_dtype(hidden_ND.dtype)
        inputs = [
            None if x is None else x.detach().requires_grad_(needs)
            for x, needs in zip((hidden_ND, weight_VD, bias_V), needed, strict=True)
        ]
        leaves = [x for x in inputs if x is not None and x.requires_grad]
        totals = [torch.zeros_like(x, dtype=wide) for x in leaves]
        loss = hidden_ND.new_zeros((), dtype=wide)
        assert inputs[0] is not None
        assert inputs[1] is not None
        head = replace(task.head, weight_VD=inputs[1], bias_V=inputs[2])
        for spans_C4 in _chunks(task):
            with torch.set_grad_enabled(bool(leaves)):
                chunk_loss = _chunk_loss(inputs[0], head, spans_C4, task).sum()
            loss += chunk_loss.detach()
            if leaves:
                for total, gradient in zip(totals, torch.autograd.grad(chunk_loss, leaves), strict=True):
                    total += gradient
        gradients = iter(total.to(x.dtype) for total, x in zip(totals, leaves, strict=True))
        ctx.save_for_backward(*(next(gradients) if needs else None for needs in needed))
        return loss


def _chunks(task: _SpanLossInputs) -> Iterator[Tensor]:
    """Yields groups of spans, int64 [C, 4], whose logits fit into a chunk; at least one span each."""
    spans_S4 = task.rows.spans_S4
    max_rows = max(1, MAX_CHUNK_ENTRIES // max(task.head.vocab_size, task.rows.teacher.vocab_size))
    first = rows = 0
    for s, width in enumerate(spans_S4[:, [1, 3]].amax(dim=1).tolist()):
        if rows and rows + width > max_rows:
            yield spans_S4[first:s]
            first, rows = s, 0
        rows += width
    if rows:
        yield spans_S4[first:]


def _chunk_loss(hidden_ND: Tensor, head: LMHead, spans_C4: Tensor, task: _SpanLossInputs) -> Tensor:
    """T² times the loss of each span, [C]."""
    objective, teacher, vocabulary = task.objective, task.rows.teacher, task.rows.vocabulary
    q = _span_predictions(
        divide_by_temperature(head.logits(hidden_ND[_rows(spans_C4[:, 2:])]), objective.temperature),
        task.labels_N,
        spans_C4[:, 2:],
        vocabulary.resized(vocabulary.student_V, head.vocab_size),
        vocabulary.size,
    )
    with torch.no_grad():
        p = _span_predictions(
            divide_by_temperature(
                teacher.head.logits(teacher.hidden_ND[_rows(spans_C4[:, :2])]), objective.temperature
            ),
            task.rows.labels_M,
            spans_C4[:, :2],
            vocabulary.resized(vocabulary.teacher_V, teacher.vocab_size),
            vocabulary.size,
        )
    if objective.kind == "uld":
        loss_C = ranked_distance(q.logp_CV.exp(), p.logp_CV.exp())
    else:
        loss_C = span_divergence(q, p, (spans_C4[:, 1] > 1) | (spans_C4[:, 3] > 1), objective)
    return objective.temperature**2 * loss_C


@dataclass(frozen=True, eq=False)
class SpanPredictions:
    """The predictions of one side for each span.

    Args:
        logp_CV: log-probabilities of the first token; −∞ for ids without a shared token.
        first_C: the first token.
        rest_C: log-probability of the span's other tokens, each given those before it; 0 if there are none.
        shared_V: the shared token of each id; ``size`` for ids without one.
        size: the number of shared tokens.
    """

    logp_CV: Tensor
    first_C: Tensor
    rest_C: Tensor
    shared_V: Tensor
    size: int

    def take(self, selected_C: Tensor) -> SpanPredictions:
        """The predictions for some of the spans."""
        return replace(
            self,
            logp_CV=self.logp_CV[selected_C],
            first_C=self.first_C[selected_C],
            rest_C=self.rest_C[selected_C],
        )

    def first_token_logp(self, other: SpanPredictions) -> Tensor:
        """Log-probabilities of the shared tokens, [C, K].

        The first tokens of the two sides may map to two different shared tokens (if a tokenizer did not use a
        token that it has). Those two are one outcome: each gets half of its probability on both sides, which
        gives every divergence the same value as one entry.
        """
        p_CK = _sum_by_shared_token(self.logp_CV.exp(), self.shared_V, self.size)
        own_C1, others_C1, differ_C1 = self._first_shared(other)
        both_C1 = self._first_token_mass(p_CK, other) / (1 + differ_C1.to(p_CK.dtype))
        return _clamped_log(p_CK.scatter(1, own_C1, both_C1).scatter(1, others_C1, both_C1))

    def continuation_logp(self, other: SpanPredictions) -> Tensor:
        """Log-probabilities that a text that begins like the span continues as it, or otherwise, [C, 2]."""
        first_C1 = self.first_C[:, None]
        log_first_C1 = self.logp_CV.gather(1, first_C1)
        # By expm1, not as 1 − p: where the text is nearly certain, the difference would lose all digits.
        otherwise_C1 = log_first_C1.exp() * -torch.expm1(self.rest_C[:, None])
        p_CK = _sum_by_shared_token(
            self.logp_CV.exp().scatter(1, first_C1, otherwise_C1), self.shared_V, self.size
        )
        text_C1 = log_first_C1 + self.rest_C[:, None]
        return torch.cat([text_C1, _clamped_log(self._first_token_mass(p_CK, other))], dim=1).log_softmax(
            dim=-1
        )

    def _first_shared(self, other: SpanPredictions) -> tuple[Tensor, Tensor, Tensor]:
        """The shared tokens of both sides' first tokens, [C, 1] each, and whether they differ."""
        own_C1 = self.shared_V[self.first_C[:, None]]
        others_C1 = other.shared_V[other.first_C[:, None]]
        return own_C1, others_C1, own_C1 != others_C1

    def _first_token_mass(self, p_CK: Tensor, other: SpanPredictions) -> Tensor:
        """The probability in ``p_CK`` of both sides' first tokens together, [C, 1]."""
        own_C1, others_C1, differ_C1 = self._first_shared(other)
        return p_CK.gather(1, own_C1) + differ_C1 * p_CK.gather(1, others_C1)


def span_divergence(
    q: SpanPredictions, p: SpanPredictions, multi_token_C: Tensor, objective: Objective
) -> Tensor:
    """The divergence of ``objective`` between the sides at each span, [C].

    Args:
        q: the student's.
        p: the teacher's.
        multi_token_C: spans with several tokens on at least one side.
    """

    def compare(student_CK: Tensor, teacher_CK: Tensor) -> Tensor:
        sides = Distribution.from_logp(student_CK), Distribution.from_logp(teacher_CK)
        return loss_and_gradient(*sides, objective)[0]

    loss_C = compare(q.first_token_logp(p), p.first_token_logp(q))
    selected_C = multi_token_C.nonzero()[:, 0].to(loss_C.device)
    if not len(selected_C):
        return loss_C
    q, p = q.take(selected_C), p.take(selected_C)
    return loss_C.index_add(0, selected_C, compare(q.continuation_logp(p), p.continuation_logp(q)))


def _span_predictions(
    logits_RV: Tensor, labels_N: Tensor, spans_C2: Tensor, shared_V: Tensor, size: int
) -> SpanPredictions:
    """The predictions from the logits of the spans' rows, end to end; ``labels_N`` are those of all rows."""
    device = logits_RV.device
    labels_R = labels_N[_rows(spans_C2).to(device)]
    shared_V = shared_V.to(device)
    logp_RV = logits_RV.masked_fill(shared_V == size, -torch.inf).log_softmax(dim=-1)
    counts_C = spans_C2[:, 1]
    first_C = (counts_C.cumsum(0) - counts_C).to(device)
    span_R = torch.repeat_interleave(torch.arange(len(counts_C)), counts_C).to(device)
    later_R = torch.ones_like(labels_R, dtype=torch.bool).index_fill(0, first_C, False).nonzero()[:, 0]
    chosen = logp_RV[later_R, labels_R[later_R]]
    rest_C = logp_RV.new_zeros(len(counts_C)).index_add(0, span_R[later_R], chosen)
    return SpanPredictions(logp_RV[first_C], labels_R[first_C], rest_C, shared_V, size)


def _rows(spans_C2: Tensor) -> Tensor:
    """The rows of spans, [R], from their first row and number of rows."""
    counts_C = spans_C2[:, 1]
    before_C = counts_C.cumsum(0) - counts_C
    return torch.arange(int(counts_C.sum())) + torch.repeat_interleave(spans_C2[:, 0] - before_C, counts_C)


def _sum_by_shared_token(p_CV: Tensor, shared_V: Tensor, size: int) -> Tensor:
    """Sums probabilities over the ids with the same shared token, [C, K]."""
    # Ids without a shared token have class ``size``, a column that is cut off again.
    sums = p_CV.new_zeros(len(p_CV), size + 1)
    return sums.scatter_add(1, shared_V.expand_as(p_CV), p_CV)[:, :size]


def _clamped_log(p_CK: Tensor) -> Tensor:
    """The logarithm, finite where a probability underflows to 0."""
    return p_CK.clamp_min(torch.finfo(p_CK.dtype).tiny).log()


def ranked_distance(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """Σ_r |p_(r) − q_(r)| over the probabilities in descending order, the shorter side padded with 0, [N].

    Boizard et al. 2024 (arXiv:2402.12030): the Wasserstein distance under a uniform cost, in closed form.
    """
    width = min(student_NV.shape[1], teacher_NV.shape[1])
    ranked = [side_NV.topk(width, dim=-1).values for side_NV in (student_NV, teacher_NV)]
    # The longer side's smallest entries, beyond the shorter side's length, are compared with 0.
    rest_N = student_NV.sum(dim=-1) + teacher_NV.sum(dim=-1) - ranked[0].sum(dim=-1) - ranked[1].sum(dim=-1)
    return (ranked[0] - ranked[1]).abs().sum(dim=-1) + rest_N
