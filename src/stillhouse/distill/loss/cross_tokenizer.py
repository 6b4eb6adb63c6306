"""The loss between teacher and student whose tokens differ, over the spans of an answer (:mod:`.alignment`).

Two ways to compare what either side expected at the beginning of a span:

- **A divergence over shared tokens.** Either distribution is added up over the tokens that both have
  (:mod:`.shared_vocabulary`), and any divergence of :mod:`.divergences` is taken of the two sums. A span of
  several tokens adds the divergence between the two answers to one question more: what begins like this span,
  does it go on as its text? The probability of the text is that of its first token times that of each that
  follows (the chain rule, as in GOLD, Patiño et al. 2025). For forward KL the sum is the chain rule of
  divergences with the beginning that came in place of the average over all, so the tokens inside a span have
  the weight of any other. All distributions sum to 1, and the loss is 0 where the sides agree. (GOLD scales
  the whole first distribution by the chain; the sums are then below 1, and differ between sides that agree.)
  With one tokenizer every span is one token, every token its own, and the result the plain divergence.
- **Universal Logit Distillation** (``uld``, Boizard et al. 2024, arXiv:2402.12030): the
  probabilities of each side in falling order, the shorter list filled up with zeros, and the sum of absolute
  differences. Needs no correspondence of tokens, and knows none: which token is likely plays no part.

Both are computed for a few spans at a time and their gradients kept, so that no [tokens, vocabulary] tensor
of the batch exists. Logits, softmax and sums are in float32 (float64 for float64).

Shapes: N student rows, M teacher rows, D hidden size, S spans, C spans of a chunk, R rows of a chunk, V a
vocabulary, K shared tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stillhouse.distill.loss.divergences import (
    divide_by_temperature,
    loss_and_gradient,
    reduction_dtype,
)
from stillhouse.distill.loss.fused_loss import PrecomputedGradients, fused_loss
from stillhouse.distill.loss.lm_head import LMHead
from stillhouse.distill.loss.shared_vocabulary import SharedVocabulary
from stillhouse.distill.loss.teacher_rows import DenseRows
from stillhouse.objectives import Distribution
from stillhouse.recipe import Objective

MOST_ENTRIES = 2**24
"""Entries of a chunk's logits, of the larger vocabulary: 64 MB in float32, of which a few exist at once."""


@dataclass(frozen=True, eq=False)
class SpanRows:
    """What the teacher said about a batch, in its own tokens.

    Args:
        teacher: M rows, of the teacher's tokens that lie in spans.
        labels_M: those tokens, int64.
        spans_S4: int64, on the processor: the teacher's first row and how many, the student's first row and
            how many; no two spans overlap, and they stand in the student's order.
        vocabulary: what the tokens of either side count for.
    """

    teacher: DenseRows
    labels_M: Tensor
    spans_S4: Tensor
    vocabulary: SharedVocabulary


def span_loss(
    hidden_ND: Tensor, head: LMHead, labels_N: Tensor, rows: SpanRows, objective: Objective
) -> Tensor:
    """The objective summed over spans, with its share of cross-entropy summed over the N rows; a scalar.

    Like ``fused_loss``: divide it by the number of counted tokens of the step. Where spans have several of
    the student's tokens there are fewer spans than tokens, and the divergence weighs that much less.

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
    """What :class:`_SpanLoss` needs besides the tensors that get gradients."""

    head: LMHead
    labels_N: Tensor
    rows: SpanRows
    objective: Objective
    differentiate: bool


class _SpanLoss(PrecomputedGradients):
    """Differentiates chunk by chunk while it computes the loss."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, task: _SpanLossInputs
    ) -> Tensor:
        wanted = [task.differentiate and needed for needed in ctx.needs_input_grad[:3]]
        wide = reduction_dtype(hidden_ND.dtype)
        inputs = [
            None if x is None else x.detach().requires_grad_(want)
            for x, want in zip((hidden_ND, weight_VD, bias_V), wanted, strict=True)
        ]
        learned = [x for x in inputs if x is not None and x.requires_grad]
        totals = [torch.zeros_like(x, dtype=wide) for x in learned]
        loss = hidden_ND.new_zeros((), dtype=wide)
        assert inputs[0] is not None
        assert inputs[1] is not None
        head = replace(task.head, weight_VD=inputs[1], bias_V=inputs[2])
        for spans_C4 in _chunks(task):
            with torch.set_grad_enabled(bool(learned)):
                part = _chunk_loss(inputs[0], head, spans_C4, task).sum()
            loss += part.detach()
            if learned:
                for total, gradient in zip(totals, torch.autograd.grad(part, learned), strict=True):
                    total += gradient
        found = iter(total.to(x.dtype) for total, x in zip(totals, learned, strict=True))
        ctx.save_for_backward(*(next(found) if want else None for want in wanted))
        return loss


def _chunks(task: _SpanLossInputs) -> Iterator[Tensor]:
    """Spans, int64 [C, 4], whose rows fit together; at least one."""
    spans_S4 = task.rows.spans_S4
    most = max(1, MOST_ENTRIES // max(task.head.vocab_size, task.rows.teacher.vocab_size))
    first = rows = 0
    for s, width in enumerate(spans_S4[:, [1, 3]].amax(dim=1).tolist()):
        if rows and rows + width > most:
            yield spans_S4[first:s]
            first, rows = s, 0
        rows += width
    if rows:
        yield spans_S4[first:]


def _chunk_loss(hidden_ND: Tensor, head: LMHead, spans_C4: Tensor, task: _SpanLossInputs) -> Tensor:
    """T² times the loss of each span, [C]."""
    objective, teacher, vocabulary = task.objective, task.rows.teacher, task.rows.vocabulary
    q = _side(
        divide_by_temperature(head.logits(hidden_ND[_rows(spans_C4[:, 2:])]), objective.temperature),
        task.labels_N,
        spans_C4[:, 2:],
        vocabulary.resized(vocabulary.student_V, head.vocab_size),
        vocabulary.size,
    )
    with torch.no_grad():
        p = _side(
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
    """What one side expected at the beginning of each span.

    Args:
        logp_CV: log-probabilities of the first token; −∞ for ids that count for no shared token.
        first_C: the token that came.
        rest_C: log-probability of the span's other tokens, each given those before it; 0 where there are
        none.
        class_V: the shared token that each id counts for; ``size`` where none.
        size: shared tokens.
    """

    logp_CV: Tensor
    first_C: Tensor
    rest_C: Tensor
    class_V: Tensor
    size: int

    def take(self, chosen_C: Tensor) -> SpanPredictions:
        """Some of the spans."""
        return replace(
            self,
            logp_CV=self.logp_CV[chosen_C],
            first_C=self.first_C[chosen_C],
            rest_C=self.rest_C[chosen_C],
        )

    def beginnings(self, other: SpanPredictions) -> Tensor:
        """Log-probabilities of the shared tokens, [C, K].

        The first tokens of the two sides may count for two shared tokens (where a tokenizer did not use a
        token that it has). These are one outcome then, half of it in either place on both sides, which no
        divergence can tell from one.
        """
        p_CK = _sums(self.logp_CV.exp(), self.class_V, self.size)
        own_C1, others_C1, differ_C1 = self._begun(other)
        both_C1 = self._of(p_CK, other) / (1 + differ_C1.to(p_CK.dtype))
        return _log(p_CK.scatter(1, own_C1, both_C1).scatter(1, others_C1, both_C1))

    def goes_on(self, other: SpanPredictions) -> Tensor:
        """Log-probabilities that what begins like the span is its text, and that it is not, [C, 2]."""
        first_C1 = self.first_C[:, None]
        log_first_C1 = self.logp_CV.gather(1, first_C1)
        # Not one minus the other: where the text is nearly certain, no digit would be left.
        stops_C1 = log_first_C1.exp() * -torch.expm1(self.rest_C[:, None])
        p_CK = _sums(self.logp_CV.exp().scatter(1, first_C1, stops_C1), self.class_V, self.size)
        text_C1 = log_first_C1 + self.rest_C[:, None]
        return torch.cat([text_C1, _log(self._of(p_CK, other))], dim=1).log_softmax(dim=-1)

    def _begun(self, other: SpanPredictions) -> tuple[Tensor, Tensor, Tensor]:
        """What the first tokens of the two sides count for, [C, 1] each, and whether they differ."""
        own_C1 = self.class_V[self.first_C[:, None]]
        others_C1 = other.class_V[other.first_C[:, None]]
        return own_C1, others_C1, own_C1 != others_C1

    def _of(self, p_CK: Tensor, other: SpanPredictions) -> Tensor:
        """The part of ``p_CK`` that either first token counts for, [C, 1]."""
        own_C1, others_C1, differ_C1 = self._begun(other)
        return p_CK.gather(1, own_C1) + differ_C1 * p_CK.gather(1, others_C1)


def span_divergence(
    q: SpanPredictions, p: SpanPredictions, several_C: Tensor, objective: Objective
) -> Tensor:
    """The divergence of ``objective`` between the sides at each span, [C].

    Args:
        q: the student's.
        p: the teacher's.
        several_C: spans that have several tokens on one side at least.
    """

    def compare(student_CK: Tensor, teacher_CK: Tensor) -> Tensor:
        sides = Distribution.from_logp(student_CK), Distribution.from_logp(teacher_CK)
        return loss_and_gradient(*sides, objective)[0]

    loss_C = compare(q.beginnings(p), p.beginnings(q))
    chosen_C = several_C.nonzero()[:, 0].to(loss_C.device)
    if not len(chosen_C):
        return loss_C
    q, p = q.take(chosen_C), p.take(chosen_C)
    return loss_C.index_add(0, chosen_C, compare(q.goes_on(p), p.goes_on(q)))


def _side(
    logits_RV: Tensor, labels_N: Tensor, spans_C2: Tensor, class_V: Tensor, size: int
) -> SpanPredictions:
    """Reads the logits of the spans' rows, which stand end to end; ``labels_N`` of all rows."""
    device = logits_RV.device
    labels_R = labels_N[_rows(spans_C2).to(device)]
    class_V = class_V.to(device)
    logp_RV = logits_RV.masked_fill(class_V == size, -torch.inf).log_softmax(dim=-1)
    counts_C = spans_C2[:, 1]
    first_C = (counts_C.cumsum(0) - counts_C).to(device)
    span_R = torch.repeat_interleave(torch.arange(len(counts_C)), counts_C).to(device)
    later_R = torch.ones_like(labels_R, dtype=torch.bool).index_fill(0, first_C, False).nonzero()[:, 0]
    chosen = logp_RV[later_R, labels_R[later_R]]
    rest_C = logp_RV.new_zeros(len(counts_C)).index_add(0, span_R[later_R], chosen)
    return SpanPredictions(logp_RV[first_C], labels_R[first_C], rest_C, class_V, size)


def _rows(spans_C2: Tensor) -> Tensor:
    """The rows of spans that are given by their first row and how many, [R]."""
    counts_C = spans_C2[:, 1]
    before_C = counts_C.cumsum(0) - counts_C
    return torch.arange(int(counts_C.sum())) + torch.repeat_interleave(spans_C2[:, 0] - before_C, counts_C)


def _sums(p_CV: Tensor, class_V: Tensor, size: int) -> Tensor:
    """Probabilities added up over the ids that count for the same shared token, [C, K]."""
    sums = p_CV.new_zeros(len(p_CV), size + 1)
    return sums.scatter_add(1, class_V.expand_as(p_CV), p_CV)[:, :size]


def _log(p_CK: Tensor) -> Tensor:
    """The logarithm, finite where a probability is too small for its type."""
    return p_CK.clamp_min(torch.finfo(p_CK.dtype).tiny).log()


def ranked_distance(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """Σ_r |p_(r) − q_(r)| over the probabilities in falling order, the shorter side filled up with 0, [N].

    Boizard et al. 2024 (arXiv:2402.12030): the Wasserstein distance under the cost that costs all
    moves alike, in closed form.
    """
    width = min(student_NV.shape[1], teacher_NV.shape[1])
    ranked = [side_NV.topk(width, dim=-1).values for side_NV in (student_NV, teacher_NV)]
    # Beyond the shorter side's last entry stand the longer one's smallest, each held against 0.
    rest_N = student_NV.sum(dim=-1) + teacher_NV.sum(dim=-1) - ranked[0].sum(dim=-1) - ranked[1].sum(dim=-1)
    return (ranked[0] - ranked[1]).abs().sum(dim=-1) + rest_N
