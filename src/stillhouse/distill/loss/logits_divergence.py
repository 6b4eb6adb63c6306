"""The divergences as a loss for a training loop of your own: logits in, a differentiable scalar out.

The gradient is the closed form of :mod:`stillhouse.divergences`, computed with the loss, a few rows at a
time. Autograd therefore keeps one tensor of the size of the logits instead of half a dozen. Training with
:func:`stillhouse.train` is cheaper still, because it never holds the logits of a batch. Second derivatives
are not available.

Shapes: R rows (all positions), N rows that count, V the student's vocabulary, S the ids that both sides have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from stillhouse.distill.loss.logit_losses import (
    divide_by_temperature,
    loss_and_gradient,
    reduction_dtype,
    require_supported,
)
from stillhouse.divergences import OBJECTIVES, Distribution, ObjectiveName
from stillhouse.errors import RecipeError
from stillhouse.recipe import Objective

IGNORED = -100
"""The label of tokens that are not learned, in transformers and PyTorch."""
CHUNK = 512
"""Rows whose float32 copies are in memory at once."""


def divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    kind: ObjectiveName = "forward_kl",
    temperature: float = 1.0,
    alpha: float = Objective.alpha,
    beta: float = Objective.beta,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    """The divergence between two models' next-token distributions, in nats; differentiable by the student's.

    Example::

        loss = st.divergence(student(ids).logits, teacher(ids).logits, temperature=2.0, labels=labels)
        loss.backward()

    Both sides are softened with the temperature T and the result is multiplied by T², which keeps the size of
    the gradient when T changes (Hinton, Vinyals & Dean 2015, section 2). Softmax and sums run in float32
    (float64 for float64), whatever the dtype of the logits.

    Args:
        student_logits: [..., V], finite. Vocabularies that are padded differently are compared over the ids
            that both have, each side normalised over these.
        teacher_logits: [..., V'] with the same leading shape; gets no gradient.
        kind: `forward_kl` KL(P‖Q), `reverse_kl` KL(Q‖P), `jsd`, `skew_forward_kl` or `skew_reverse_kl`, where
            P is the teacher and Q the student.
        alpha: `skew_*`: share of the other distribution in the mixture, below 1.
        beta: `jsd`: weight of the teacher in the mixture; 0 is forward KL and 1 reverse KL.
        labels: [..., T] as transformers takes them: not shifted, -100 where nothing is learned. The logits at
            position t predict token t + 1, so position t counts if label t + 1 does. The shift happens here.
        mask: [...] bool, the positions of the *logits* that count; not shifted here. Without ``labels`` and
            ``mask``, every position counts.
        reduction: ``mean`` over the positions that count (0 if none does), ``sum`` (divide it by the tokens
            of the whole optimizer step when you accumulate gradients), or ``none``: [...], 0 where nothing
            counts.

    Raises:
        RecipeError: the kind is unknown or compares no logits, or a parameter is out of range.
        ValueError: the shapes do not fit, or both ``labels`` and ``mask`` are given.
    """
    objective = _objective(kind, temperature, alpha, beta)
    leading = student_logits.shape[:-1]
    if teacher_logits.shape[:-1] != leading:
        raise ValueError(
            f"the logits have the shapes {list(student_logits.shape)} and {list(teacher_logits.shape)}; "
            "all but the last dimension must be the same"
        )
    counted_R = _counted(leading, labels, mask, student_logits.device)
    rows_N = counted_R.nonzero()[:, 0]
    student_RV = student_logits.reshape(-1, student_logits.shape[-1])
    teacher_RV = teacher_logits.detach().reshape(-1, teacher_logits.shape[-1])
    differentiate = torch.is_grad_enabled() and student_logits.requires_grad
    inputs = _Inputs(teacher_RV, rows_N, objective, differentiate)
    loss_R: Tensor = _LogitsDivergence.apply(student_RV, inputs)  # pyright: ignore[reportAssignmentType]
    if reduction == "none":
        return loss_R.reshape(leading)
    if reduction == "sum":
        return loss_R.sum()
    if reduction != "mean":
        raise ValueError(f"reduction must be mean, sum or none, not {reduction!r}")
    return loss_R.sum() / max(1, len(rows_N))


@dataclass(frozen=True, eq=False)
class _Inputs:
    teacher_RV: Tensor
    rows_N: Tensor
    objective: Objective
    differentiate: bool


class _LogitsDivergence(torch.autograd.Function):
    """One loss a row, with its gradient by the student's logits."""

    @staticmethod
    def forward(ctx: Any, student_RV: Tensor, inputs: _Inputs) -> Tensor:
        wide = reduction_dtype(student_RV.dtype)
        shared = min(student_RV.shape[1], inputs.teacher_RV.shape[1])
        loss_R = student_RV.new_zeros(len(student_RV), dtype=wide)
        slope_RV = torch.zeros_like(student_RV) if inputs.differentiate else None
        for rows_n in inputs.rows_N.split(CHUNK):
            q = _distribution(student_RV[rows_n, :shared].to(wide), inputs.objective.temperature)
            p = _distribution(inputs.teacher_RV[rows_n, :shared].to(wide), inputs.objective.temperature)
            loss_n, slope_nS = loss_and_gradient(q, p, inputs.objective)
            # T² for the loss; its derivative by the logits is that by logits / T, divided by T.
            loss_R[rows_n] = inputs.objective.temperature**2 * loss_n
            if slope_RV is not None:
                slope_RV[rows_n, :shared] = (inputs.objective.temperature * slope_nS).to(slope_RV.dtype)
        ctx.save_for_backward(slope_RV)
        return loss_R

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, None]:  # pyright: ignore
        (slope_RV,) = ctx.saved_tensors
        return (None if slope_RV is None else slope_RV * outer[0].to(slope_RV.dtype)[:, None]), None


def _distribution(logits_nS: Tensor, temperature: float) -> Distribution:
    # Indexing has copied the rows, so that from_logits may overwrite them.
    return Distribution.from_logits(divide_by_temperature(logits_nS, temperature))


def _objective(kind: str, temperature: float, alpha: float, beta: float) -> Objective:
    usable = [name for name, entry in OBJECTIVES.items() if entry.function is not None]
    if kind not in usable:
        raise RecipeError(f"there is no divergence {kind!r} between logits", hint=f"Use {', '.join(usable)}.")
    if not 0 < temperature < math.inf:
        raise RecipeError(f"the temperature must be positive, not {temperature}")
    if not (0 <= alpha <= 1 and 0 <= beta <= 1):
        raise RecipeError("alpha and beta must be between 0 and 1")
    objective = Objective(kind=cast(ObjectiveName, kind), temperature=temperature, alpha=alpha, beta=beta)
    require_supported(objective)
    return objective


def _counted(leading: torch.Size, labels: Tensor | None, mask: Tensor | None, device: torch.device) -> Tensor:
    """Which rows count, bool [R]."""
    if labels is not None and mask is not None:
        raise ValueError("give labels or mask, not both")
    for name, given in (("labels", labels), ("mask", mask)):
        if given is not None and given.shape != leading:
            raise ValueError(
                f"{name} has the shape {list(given.shape)}, the logits {list(leading)} positions"
            )
    if labels is not None:
        counted = torch.zeros(leading, dtype=torch.bool, device=device)
        counted[..., :-1] = labels[..., 1:].to(device) != IGNORED
        return counted.reshape(-1)
    if mask is not None:
        return mask.to(device, torch.bool).reshape(-1)
    return torch.ones(leading.numel(), dtype=torch.bool, device=device)
