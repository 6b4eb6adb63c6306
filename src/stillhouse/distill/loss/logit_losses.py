"""The objective's divergence between next-token logits: temperature, cross-entropy, top-k and drawn targets.

The divergences themselves, and how to add one, are in :mod:`stillhouse.divergences`. P is the teacher, Q the
student, in nats. Every function returns the loss and its derivative by the student's logits.

Nothing here averages: losses are one a row, and the caller divides by the tokens it counted.

Shapes: N rows (tokens), V entries (a vocabulary, or K listed ids and one tail), K listed ids.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stillhouse.divergences import Distribution, LossAndGradient, softmax_and_logsumexp
from stillhouse.errors import RecipeError
from stillhouse.recipe import Objective
from stillhouse.recipe.validation import objective_rules


def require_supported(objective: Objective) -> None:
    """Refuses an objective that cannot work, as reading a recipe does.

    Raises:
        RecipeError: its targets cannot give its divergence, or it is zero for every student.
    """
    complaint = next(objective_rules(objective), None)
    if complaint is not None:
        raise RecipeError(": ".join(complaint))


def objective_divergence(student_logp_NV: Tensor, teacher_logp_NV: Tensor, objective: Objective) -> Tensor:
    """The objective's divergence in nats, one a row, [N], without the objective's share of cross-entropy.

    Both sides are softened with the objective's temperature T, and the result is multiplied by T², which
    keeps the size of the gradient when T changes (Hinton, Vinyals & Dean 2015, section 2). Differentiable.

    Args:
        student_logp_NV: log-probabilities (or logits: they are normalised here), finite.
        teacher_logp_NV: the same for the teacher, over the same ids.
    """
    student = Distribution.from_logp(soften(student_logp_NV, objective.temperature))
    teacher = Distribution.from_logp(soften(teacher_logp_NV, objective.temperature))
    return objective.temperature**2 * loss_and_gradient(student, teacher, objective)[0]


def loss_and_gradient(q: Distribution, p: Distribution, objective: Objective) -> LossAndGradient:
    """The divergence of ``objective`` between rows that are softened already; its temperature is not used.

    Args:
        q: the student's; the gradient is by z where q = softmax(z).
        p: the teacher's.
    """
    kind = objective.resolved_kind
    assert kind.function is not None, f"{objective.kind} is not a divergence"
    return kind.function(q, p, **{name: getattr(objective, name) for name in kind.parameters})


def soften(logits_NV: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature), in float32 at least, [N, V]."""
    wide_NV = logits_NV.to(reduction_dtype(logits_NV.dtype))
    return divide_by_temperature(wide_NV, temperature).log_softmax(dim=-1)


def divide_by_temperature(logits_NV: Tensor, temperature: float) -> Tensor:
    """logits / temperature; at temperature 1 the same tensor, not a copy."""
    return logits_NV if temperature == 1.0 else logits_NV / temperature


def reduction_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over a vocabulary: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def cross_entropy(logits_NV: Tensor, labels_N: Tensor) -> LossAndGradient:
    """−log q(label), from logits in float32 at least."""
    q_NV, logz_N1 = softmax_and_logsumexp(logits_NV)
    labels_N1 = labels_N[:, None]
    loss_N = (logz_N1 - logits_NV.gather(1, labels_N1))[:, 0]
    return loss_N, q_NV.scatter_add_(1, labels_N1, q_NV.new_tensor(-1.0).expand_as(labels_N1))


def topk_divergence(
    logits_NV: Tensor, ids_NK: Tensor, teacher_logp_NK1: Tensor, objective: Objective
) -> LossAndGradient:
    """The divergence between distributions whose ids outside the listed ones are merged into one, the tail.

    Exact for the coarser distributions, and never above the full divergence (data-processing inequality).

    Args:
        logits_NV: the student's, divided by the temperature, in float32 at least; overwritten.
        ids_NK: the ids that the teacher listed, distinct in a row; K < V.
        teacher_logp_NK1: the teacher's softened log-probabilities, the tail's last.
    """
    listed_NK = logits_NV.gather(1, ids_NK)
    # The tail is summed over its ids, not one minus the rest: a nearly certain student keeps all digits.
    within_tail_NV, tail_N1 = softmax_and_logsumexp(logits_NV.scatter_(1, ids_NK, -math.inf))
    q = Distribution.from_logp(torch.cat([listed_NK, tail_N1], dim=1).log_softmax(dim=-1))
    loss_N, coarse_NK1 = loss_and_gradient(q, Distribution.from_logp(teacher_logp_NK1), objective)
    # The tail's derivative is divided among its ids by their shares of the tail.
    gradient_NV = within_tail_NV.mul_(coarse_NK1[:, -1:])
    return loss_N, gradient_NV.scatter_(1, ids_NK, coarse_NK1[:, :-1])


def sampled_forward_kl(logits_NV: Tensor, ids_NK: Tensor, counts_NK: Tensor) -> LossAndGradient:
    """Forward KL estimated from ids drawn from the teacher ("random sampling KD", Anshumann et al. 2025).

    −Σ_k (count_k / draws) log q(id_k). Its mean over draws is the cross-entropy of Q under P, which is the
    forward KL plus the teacher's entropy: the loss is larger by that constant, the gradient is unbiased.

    Args:
        logits_NV: the student's, divided by the temperature, in float32 at least.
        ids_NK: drawn ids; unused entries have a count of 0.
        counts_NK: how often each was drawn.
    """
    q_NV, logz_N1 = softmax_and_logsumexp(logits_NV)
    share_NK = counts_NK.to(q_NV.dtype) / counts_NK.sum(dim=-1, keepdim=True)
    loss_N = (share_NK * (logz_N1 - logits_NV.gather(1, ids_NK))).sum(dim=-1)
    return loss_N, q_NV.scatter_add_(1, ids_NK, -share_NK)
