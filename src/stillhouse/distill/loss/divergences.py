"""How far the student's next-token distribution is from the teacher's, with the gradient in closed form.

P is the teacher, Q the student, in nats. Each divergence here is a pure function of two
tensors of log-probabilities and returns the loss and its derivative by the student's
logits, so that a caller who cannot afford automatic differentiation over a vocabulary
does not need it. Log-probabilities must be finite: ids that one side does not have are
left out on both sides (sliced off before the softmax), never given a probability of 0.

Nothing here averages: losses are one a row, and the caller divides by the tokens it counted.

The derivative. Let Q = softmax(z) and D = Σ f_i(q_i). Then dD/dz_i = q_i (f'_i − Σ_j q_j f'_j); the functions
below put in their own f'. Constants in f' cancel and are left out.

Shapes: N rows (tokens), V entries (a vocabulary, or K listed ids and one tail), K listed ids.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stillhouse.errors import RecipeError
from stillhouse.recipe import Objective

LossAndGradient = tuple[Tensor, Tensor]
"""The loss, [N], and its derivative by the student's logits, [N, V]."""


@dataclass(frozen=True, eq=False)
class Distribution:
    """Rows of log-probabilities with their exponentials, both [N, V], in float32 at least."""

    log_NV: Tensor
    p_NV: Tensor

    @classmethod
    def from_logp(cls, log_NV: Tensor) -> Distribution:
        """From log-probabilities that are normalised; differentiable."""
        return cls(log_NV, log_NV.exp())

    @classmethod
    def from_logits(cls, logits_NV: Tensor) -> Distribution:
        """From logits in float32 at least, which become the log-probabilities; not differentiable.

        One exponential an entry instead of two: log Σ e^z is read off the largest probability.
        """
        p_NV, logz_N1 = _softmax(logits_NV)
        return cls(logits_NV.sub_(logz_N1), p_NV)


def divergence(student_logp_NV: Tensor, teacher_logp_NV: Tensor, objective: Objective) -> Tensor:
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


def soften(logits_NV: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature), in float32 at least, [N, V]."""
    return divide_by_temperature(logits_NV.to(reduction_dtype(logits_NV.dtype)), temperature).log_softmax(
        dim=-1
    )


def divide_by_temperature(logits_NV: Tensor, temperature: float) -> Tensor:
    """logits / temperature; itself at temperature 1."""
    return logits_NV if temperature == 1.0 else logits_NV / temperature


def reduction_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums over a vocabulary are made in: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def loss_and_gradient(q: Distribution, p: Distribution, objective: Objective) -> LossAndGradient:
    """The divergence of ``objective`` between rows that are softened already; its temperature is not used.

    Args:
        q: the student's; the gradient is by z where q = softmax(z).
        p: the teacher's.
    """
    match effective_kind(objective):
        case "forward_kl":
            return _forward_kl(q, p)
        case "reverse_kl":
            return _weighted_by_student(q, q.log_NV - p.log_NV)
        case "jsd":
            return _generalised_jsd(q, p, objective.beta)
        case "skew_forward_kl":
            return _skew_forward_kl(q, p, objective.alpha)
        case "skew_reverse_kl":
            return _skew_reverse_kl(q, p, objective.alpha)
    raise AssertionError(f"{objective.kind} is not a divergence")


def effective_kind(objective: Objective) -> str:
    """``objective.kind``, with the ends of ``jsd`` named for what they are: beta 0 forward, 1 reverse KL."""
    if objective.kind == "jsd" and objective.beta in (0.0, 1.0):
        return "reverse_kl" if objective.beta else "forward_kl"
    return objective.kind


def needs_teacher(objective: Objective) -> bool:
    """Whether the objective reads the teacher's probabilities, not only its text."""
    return objective.kind != "cross_entropy" and objective.cross_entropy < 1


def cross_entropy_weight(objective: Objective) -> float:
    """The weight of cross-entropy on the text; the divergence has the rest."""
    return 1.0 if objective.kind == "cross_entropy" else objective.cross_entropy


def require_supported(objective: Objective) -> None:
    """Refuses an objective that could not work.

    Raises:
        RecipeError: its targets cannot give its divergence, or it is zero for every student.
    """
    if not needs_teacher(objective):
        return
    if objective.targets == "sampled" and effective_kind(objective) != "forward_kl":
        raise RecipeError(
            f"objective.targets: `sampled` cannot be used with objective.kind: `{objective.kind}`. Drawn ids "
            "estimate an average under the teacher, which forward KL is; the others need its probabilities.",
            hint="Use `kind: forward_kl`, or `targets: hidden` (exact) or `topk`.",
        )
    if objective.kind.startswith("skew_") and objective.alpha == 1:
        raise RecipeError(
            "objective.alpha: 1 replaces one side by the other, so the loss is 0 whatever the student says",
            hint="Use a value from 0 to below 1; DistiLLM uses 0.1.",
        )


def cross_entropy(logits_NV: Tensor, labels_N: Tensor) -> LossAndGradient:
    """−log q(label), from logits in float32 at least."""
    q_NV, logz_N1 = _softmax(logits_NV)
    labels_N1 = labels_N[:, None]
    loss_N = (logz_N1 - logits_NV.gather(1, labels_N1))[:, 0]
    return loss_N, q_NV.scatter_add_(1, labels_N1, q_NV.new_tensor(-1.0).expand_as(labels_N1))


def topk_divergence(
    logits_NV: Tensor, ids_NK: Tensor, teacher_logp_NK1: Tensor, objective: Objective
) -> LossAndGradient:
    """The divergence between distributions whose ids outside the listed ones are merged into one, the tail.

    Exact for the coarser distributions, and never above the full divergence (data-processing inequality).
    The student's tail is summed over the ids in it rather than taken as one minus the rest, so a student
    that is nearly certain loses no digits.

    Args:
        logits_NV: the student's, divided by the temperature, in float32 at least; overwritten.
        ids_NK: the ids that the teacher listed, distinct in a row; K < V.
        teacher_logp_NK1: the teacher's softened log-probabilities, the tail's last.
    """
    listed_NK = logits_NV.gather(1, ids_NK)
    within_tail_NV, tail_N1 = _softmax(logits_NV.scatter_(1, ids_NK, -math.inf))
    q = Distribution.from_logp(torch.cat([listed_NK, tail_N1], dim=1).log_softmax(dim=-1))
    loss_N, coarse_NK1 = loss_and_gradient(q, Distribution.from_logp(teacher_logp_NK1), objective)
    # The tail's derivative is shared out by what each id is of the tail.
    gradient_NV = within_tail_NV.mul_(coarse_NK1[:, -1:])
    return loss_N, gradient_NV.scatter_(1, ids_NK, coarse_NK1[:, :-1])


def sampled_forward_kl(logits_NV: Tensor, ids_NK: Tensor, counts_NK: Tensor) -> LossAndGradient:
    """Forward KL estimated from ids drawn from the teacher ("random sampling KD", Anshumann et al. 2025).

    −Σ_k (count_k / draws) log q(id_k). Its mean over draws is the cross-entropy of Q under P, which is the
    forward KL plus the teacher's entropy: the loss is larger by that constant, the gradient is unbiased.

    Args:
        logits_NV: the student's, divided by the temperature, in float32 at least.
        ids_NK: drawn ids; places that are not used have a count of 0.
        counts_NK: how often each was drawn.
    """
    q_NV, logz_N1 = _softmax(logits_NV)
    share_NK = counts_NK.to(q_NV.dtype) / counts_NK.sum(dim=-1, keepdim=True)
    loss_N = (share_NK * (logz_N1 - logits_NV.gather(1, ids_NK))).sum(dim=-1)
    return loss_N, q_NV.scatter_add_(1, ids_NK, -share_NK)


def _softmax(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(z), [N, V], and log Σ e^z, [N, 1]: the largest z less the log of its probability."""
    p_NV = logits_NV.softmax(dim=-1)
    return p_NV, logits_NV.amax(dim=-1, keepdim=True) - p_NV.amax(dim=-1, keepdim=True).log()


def _forward_kl(q: Distribution, p: Distribution) -> LossAndGradient:
    """KL(P‖Q) (for distillation Hinton et al. 2015, with the teacher's entropy taken off). f' = −p/q."""
    return row_dot(p.p_NV, p.log_NV - q.log_NV), q.p_NV - p.p_NV


def _weighted_by_student(q: Distribution, ratio_NV: Tensor) -> LossAndGradient:
    """Σ q r, and its derivative where f' is r too: q (r − Σ q r).

    With r = log q/p it is KL(Q‖P) (for distillation Gu et al. 2024, MiniLLM, section 2.1).
    """
    loss_N = row_dot(q.p_NV, ratio_NV)
    return loss_N, q.p_NV * (ratio_NV - loss_N[:, None])


def _generalised_jsd(q: Distribution, p: Distribution, beta: float) -> LossAndGradient:
    """β KL(P‖M) + (1−β) KL(Q‖M), M = βP + (1−β)Q (Agarwal et al. 2024, GKD, section 2). f' = (1−β) log q/m.

    Not divided by β (1−β): it goes to 0 at both ends, and it is JSD/β that tends to the forward and
    JSD/(1−β) that tends to the reverse KL.
    """
    logm_NV = _mix(p.log_NV, q.log_NV, beta)
    student_N, gradient_NV = _weighted_by_student(q, q.log_NV - logm_NV)
    teacher_N = row_dot(p.p_NV, p.log_NV - logm_NV)
    return beta * teacher_N + (1 - beta) * student_N, (1 - beta) * gradient_NV


def _skew_forward_kl(q: Distribution, p: Distribution, alpha: float) -> LossAndGradient:
    """KL(P‖αP + (1−α)Q) (Ko et al. 2024, DistiLLM, section 3.1). f' = −(1−α) p/m."""
    ratio_NV = p.log_NV - _mix(p.log_NV, q.log_NV, alpha)
    loss_N = row_dot(p.p_NV, ratio_NV)
    # q p/m, with p/m from logarithms: m may be too small for float32 where p/m is not.
    share_NV = q.p_NV * ratio_NV.exp()
    return loss_N, (1 - alpha) * (q.p_NV * share_NV.sum(dim=-1, keepdim=True) - share_NV)


def _skew_reverse_kl(q: Distribution, p: Distribution, alpha: float) -> LossAndGradient:
    """KL(Q‖(1−α)P + αQ) (Ko et al. 2024, DistiLLM, section 3.1). f' = log q/n − α q/n, n the mixture."""
    ratio_NV = q.log_NV - _mix(q.log_NV, p.log_NV, alpha)
    slope_NV = ratio_NV - alpha * ratio_NV.exp()
    centred_NV = slope_NV - row_dot(q.p_NV, slope_NV)[:, None]
    return row_dot(q.p_NV, ratio_NV), q.p_NV * centred_NV


def _mix(loga_NV: Tensor, logb_NV: Tensor, share: float) -> Tensor:
    """log(share·a + (1−share)·b), for a share below 1."""
    if share == 0:
        return logb_NV
    return torch.logaddexp(loga_NV + math.log(share), logb_NV + math.log1p(-share))


def row_dot(a_NV: Tensor, b_NV: Tensor) -> Tensor:
    """Σ_v a b for each row, [N]."""
    return torch.linalg.vecdot(a_NV, b_NV)
