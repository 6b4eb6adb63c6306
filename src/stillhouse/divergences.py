"""The divergences, forward KL and others: every ``objective.kind``, with all that the package knows of it.

Recipe validation, the losses, the report and the model card read :data:`OBJECTIVES`. The divergences are
pure functions of two distributions, in nats: P is the teacher, Q the student. Each returns one loss a row
and its derivative by the student's logits, so that a caller who cannot afford automatic differentiation over
a vocabulary does not need it. Log-probabilities must be finite: ids that one side does not have are left out
on both sides (sliced off before the softmax), never given a probability of 0.

Recipes are read without torch, so this module imports it only inside a function.

**The derivative.** Let Q = softmax(z) and D = Σ f_i(q_i). Then dD/dz_i = q_i (f'_i − Σ_j q_j f'_j); each
function inserts its own f'. Constants in f' cancel and are left out.

**How to add a divergence**

1. Add its name to :data:`ObjectiveName`.
2. Write it below as a function ``(q, p, *, parameters)`` under ``@register_divergence(...)``. Its keyword
   parameters are fields of the recipe's ``objective`` section (``alpha``, ``beta``, or a field that you add
   to ``recipe.sections.Objective``). :class:`ObjectiveKind` explains the decorator's arguments.
3. Add its formula to ``tests/distill/divergence_oracles.py``, which the tests of values, gradients, top-k
   targets, spans and on-policy losses share, and its row to the table in ``docs/objectives.md``.

Every loss, rule, help text and model card takes it from here; a missing step fails a test.

Shapes: N rows (tokens), V entries (a vocabulary, or K listed ids and one tail).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from torch import Tensor

ObjectiveName = Literal[
    "cross_entropy", "forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "uld"
]

LossAndGradient = tuple["Tensor", "Tensor"]
"""The loss, [N], and its derivative by the student's logits, [N, V]."""

DivergenceFunction = Callable[..., LossAndGradient]
"""``(q: Distribution, p: Distribution, **parameters) -> LossAndGradient``."""


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
        """From logits in float32 at least, which become the log-probabilities; not differentiable."""
        p_NV, logz_N1 = softmax_and_logsumexp(logits_NV)
        return cls(logits_NV.sub_(logz_N1), p_NV)


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectiveKind:
    """One value of ``objective.kind``.

    Args:
        title: its name in reports and plots.
        description: its name in the model card.
        reads_teacher: whether it reads the teacher's probabilities, not only its text.
        compares_tokens: whether both sides must have the same ids; False compares any two vocabularies.
        estimable_from_samples: whether it is an average under the teacher, so that ids drawn from the
            teacher estimate its gradient without bias (``objective.targets: sampled``).
        limits: ``(parameter, value)`` at which it is another kind by convention, since its own formula tends
            to 0 there.
        invalid: ``(parameter, value)`` that cannot work, and why.
        function: the divergence; None where the loss is not a function of two distributions over the same
            entries.
    """

    title: str
    description: str
    reads_teacher: bool = True
    compares_tokens: bool = True
    estimable_from_samples: bool = False
    limits: Mapping[tuple[str, float], ObjectiveName] = field(default_factory=dict)
    invalid: Mapping[tuple[str, float], str] = field(default_factory=dict)
    function: DivergenceFunction | None = None

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """The fields of the ``objective`` section that its function takes."""
        return () if self.function is None else tuple(inspect.signature(self.function).parameters)[2:]


OBJECTIVES: dict[ObjectiveName, ObjectiveKind] = {
    "cross_entropy": ObjectiveKind(
        title="cross-entropy", description="cross-entropy on the teacher's text", reads_teacher=False
    ),
    # Its function, `ranked_distance`, is in distill/loss/cross_tokenizer.py: the sides differ in length.
    "uld": ObjectiveKind(
        title="universal logit distillation",
        description="universal logit distillation (sorted probabilities)",
        compares_tokens=False,
    ),
}


def register_divergence(
    name: ObjectiveName,
    *,
    title: str,
    estimable_from_samples: bool = False,
    limits: Mapping[tuple[str, float], ObjectiveName] | None = None,
    invalid: Mapping[tuple[str, float], str] | None = None,
) -> Callable[[DivergenceFunction], DivergenceFunction]:
    """Registers the decorated function in :data:`OBJECTIVES`; the arguments are :class:`ObjectiveKind`'s."""

    def register(function: DivergenceFunction) -> DivergenceFunction:
        OBJECTIVES[name] = ObjectiveKind(
            title=title,
            description=f"{title} divergence to the teacher",
            estimable_from_samples=estimable_from_samples,
            limits=limits or {},
            invalid=invalid or {},
            function=function,
        )
        return function

    return register


@register_divergence("forward_kl", title="forward KL", estimable_from_samples=True)
def forward_kl(q: Distribution, p: Distribution) -> LossAndGradient:
    """KL(P‖Q) (for distillation Hinton et al. 2015, less the teacher's entropy). f' = −p/q."""
    return row_dot(p.p_NV, p.log_NV - q.log_NV), q.p_NV - p.p_NV


@register_divergence("reverse_kl", title="reverse KL")
def reverse_kl(q: Distribution, p: Distribution) -> LossAndGradient:
    """KL(Q‖P) (for distillation Gu et al. 2024, MiniLLM, section 2.1). f' = log q/p."""
    return _weighted_by_student(q, q.log_NV - p.log_NV)


@register_divergence(
    "jsd",
    title="generalised Jensen–Shannon",
    limits={("beta", 0.0): "forward_kl", ("beta", 1.0): "reverse_kl"},
)
def jsd(q: Distribution, p: Distribution, *, beta: float) -> LossAndGradient:
    """β KL(P‖M) + (1−β) KL(Q‖M), M = βP + (1−β)Q (Agarwal et al. 2024, GKD, section 2). f' = (1−β) log q/m.

    Not divided by β (1−β): it goes to 0 at both ends, and it is JSD/β that tends to the forward and
    JSD/(1−β) that tends to the reverse KL.
    """
    logm_NV = _log_mixture(p.log_NV, q.log_NV, beta)
    student_N, gradient_NV = _weighted_by_student(q, q.log_NV - logm_NV)
    teacher_N = row_dot(p.p_NV, p.log_NV - logm_NV)
    return beta * teacher_N + (1 - beta) * student_N, (1 - beta) * gradient_NV


_ZERO_SKEW = {("alpha", 1.0): "replaces one side with the other, so the loss is always 0; DistiLLM uses 0.1"}


@register_divergence("skew_forward_kl", title="skew forward KL", invalid=_ZERO_SKEW)
def skew_forward_kl(q: Distribution, p: Distribution, *, alpha: float) -> LossAndGradient:
    """KL(P‖αP + (1−α)Q) (Ko et al. 2024, DistiLLM, section 3.1). f' = −(1−α) p/m."""
    ratio_NV = p.log_NV - _log_mixture(p.log_NV, q.log_NV, alpha)
    loss_N = row_dot(p.p_NV, ratio_NV)
    # q p/m, with p/m from logarithms: m may be too small for float32 where p/m is not.
    share_NV = q.p_NV * ratio_NV.exp()
    return loss_N, (1 - alpha) * (q.p_NV * share_NV.sum(dim=-1, keepdim=True) - share_NV)


@register_divergence("skew_reverse_kl", title="skew reverse KL", invalid=_ZERO_SKEW)
def skew_reverse_kl(q: Distribution, p: Distribution, *, alpha: float) -> LossAndGradient:
    """KL(Q‖(1−α)P + αQ) (Ko et al. 2024, DistiLLM, section 3.1). f' = log q/n − α q/n, n the mixture."""
    ratio_NV = q.log_NV - _log_mixture(q.log_NV, p.log_NV, alpha)
    slope_NV = ratio_NV - alpha * ratio_NV.exp()
    centred_NV = slope_NV - row_dot(q.p_NV, slope_NV)[:, None]
    return row_dot(q.p_NV, ratio_NV), q.p_NV * centred_NV


assert set(OBJECTIVES) == set(get_args(ObjectiveName)), "ObjectiveName lists other kinds than are registered"


def _weighted_by_student(q: Distribution, ratio_NV: Tensor) -> LossAndGradient:
    """Σ q r, and its derivative where f' is r too: q (r − Σ q r)."""
    loss_N = row_dot(q.p_NV, ratio_NV)
    return loss_N, q.p_NV * (ratio_NV - loss_N[:, None])


def _log_mixture(loga_NV: Tensor, logb_NV: Tensor, share: float) -> Tensor:
    """log(share·a + (1−share)·b), for a share below 1."""
    if share == 0:
        return logb_NV
    # From logarithms: the mixture of two probabilities below float32's smallest still has a logarithm.
    return (loga_NV + math.log(share)).logaddexp(logb_NV + math.log1p(-share))


def row_dot(a_NV: Tensor, b_NV: Tensor) -> Tensor:
    """Σ_v a b for each row, [N]."""
    import torch

    return torch.linalg.vecdot(a_NV, b_NV)


def softmax_and_logsumexp(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(z), [N, V], and log Σ e^z, [N, 1]: the largest z less the log of its probability.

    One exponential an entry instead of two: log Σ e^z is read off the largest probability, which is at
    least 1/V, so that its logarithm loses nothing.
    """
    p_NV = logits_NV.softmax(dim=-1)
    return p_NV, logits_NV.amax(dim=-1, keepdim=True) - p_NV.amax(dim=-1, keepdim=True).log()
