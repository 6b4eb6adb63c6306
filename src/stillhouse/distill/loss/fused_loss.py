"""The fused loss: from hidden states to loss and gradients, without the logits of the whole batch.

A vocabulary is large and a hidden state is small: for 49,152 ids and 576 channels the logits are 85 times the
size of the hidden states. Here the heads of student and teacher are applied to a chunk of rows, the gradient
of the divergence is computed in closed form and multiplied back through the head, and the chunk is freed. To
automatic differentiation it is one operation, whose gradients are computed together with the loss.

Inside a chunk, everything between the matrix products works on a tile of a few rows that stays in the CPU's
cache, in float32 (float64 for float64); the products run in the dtype of the hidden states. Second
derivatives are not available.

Shapes: N rows (counted tokens), D hidden size, V the student's vocabulary, S the ids both sides
have, C rows of a chunk, n rows of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stillhouse.distill.loss.lm_head import LMHead
from stillhouse.distill.loss.logit_losses import (
    cross_entropy,
    divide_by_temperature,
    loss_and_gradient,
    reduction_dtype,
    sampled_forward_kl,
    topk_divergence,
)
from stillhouse.distill.loss.policy_loss import PolicyRows, policy_gradient
from stillhouse.distill.loss.teacher_rows import DenseRows, MixedRows, SampledRows, TeacherRows, TopKRows
from stillhouse.divergences import Distribution
from stillhouse.errors import RecipeError
from stillhouse.recipe import Objective

TILE_ENTRIES_CPU = 2**20
"""Entries of a float32 tile on a CPU: 4 MB, so that the last-level cache holds several."""


def fused_loss(
    hidden_ND: Tensor,
    head: LMHead,
    labels_N: Tensor,
    teacher_rows: TeacherRows | None,
    objective: Objective,
    *,
    chunk: int = 512,
    weights_N: Tensor | None = None,
    policy: PolicyRows | None = None,
    teacher_weight: float = 1.0,
) -> Tensor:
    """The objective, summed over rows, as a float32 (float64 for float64) scalar to call ``backward`` on.

    Divide it by the number of counted tokens of the whole optimizer step, never by the vocabulary size.

    Row r is a position whose next token is learned: ``hidden_ND[r]`` is the student's last hidden state
    there, ``labels_N[r]`` the next token, and row r of ``teacher_rows`` the teacher's distribution of it.

    The two vocabularies may be padded to different sizes. The divergence is then between the distributions
    over the ids that both have, each normalised over those; cross-entropy is over all of the student's ids.

    Args:
        hidden_ND: after the final norm; its dtype is the compute dtype.
        head: the student's; weight and bias get gradients if they require them, in their own dtype and summed
            in float32.
        labels_N: int64, each below the student's vocabulary size; used by cross-entropy only.
        teacher_rows: may be None if the objective is cross-entropy alone.
        chunk: rows of one matrix product.
        weights_N: factors of the rows; None means 1 for each.
        policy: adds the policy loss of the rows' labels, which are then sampled tokens.
        teacher_weight: factor of the objective; with 0 only the policy loss is computed, without teacher.

    Raises:
        RecipeError: the cached targets cover ids that the student does not have.
    """
    assert policy is not None or teacher_weight == 1.0
    if objective.needs_teacher and teacher_weight:
        assert teacher_rows is not None
        assert len(teacher_rows) == len(hidden_ND)
        # Dense rows can be cut to the student's ids here; a stored list of ids cannot.
        truncated = isinstance(teacher_rows, TopKRows | SampledRows)
        if truncated and teacher_rows.vocab_size > head.vocab_size:
            raise RecipeError(
                f"targets are cached over {teacher_rows.vocab_size} ids; the student has {head.vocab_size}",
                hint="Cache them again for this student, or use `targets: hidden`.",
            )
        if isinstance(teacher_rows, SampledRows):
            assert objective.resolved_kind.estimable_from_samples, "drawn ids cannot estimate this divergence"
    if not teacher_weight:
        teacher_rows = None
    differentiate = torch.is_grad_enabled()
    task = _FusedLossInputs(
        head, labels_N, teacher_rows, objective, chunk, weights_N, differentiate, policy, teacher_weight
    )
    return _FusedLoss.apply(hidden_ND, head.weight_VD, head.bias_V, task)  # pyright: ignore[reportReturnType]


@dataclass(frozen=True, eq=False)
class _FusedLossInputs:
    """Arguments of :class:`_FusedLoss` that get no gradient."""

    head: LMHead
    labels_N: Tensor
    teacher_rows: TeacherRows | None
    objective: Objective
    chunk: int
    weights_N: Tensor | None
    differentiate: bool
    policy: PolicyRows | None = None
    teacher_weight: float = 1.0


class PrecomputedGradients(torch.autograd.Function):
    """``forward`` saves the gradients of all its inputs but the last; ``backward`` only scales them."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *outer: Tensor
    ) -> tuple[Tensor | None, ...]:
        return *(None if g is None else g * outer[0] for g in ctx.saved_tensors), None


class _FusedLoss(PrecomputedGradients):
    """Computes the gradients with the loss."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, task: _FusedLossInputs
    ) -> Tensor:
        # Inside forward() gradients are always disabled, so the caller's mode is an argument.
        needed = [task.differentiate and needs for needs in ctx.needs_input_grad[:3]]
        loss, *gradients = _chunked(hidden_ND, weight_VD, bias_V, task, needed)
        ctx.save_for_backward(*gradients)
        return loss


def _chunked(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, task: _FusedLossInputs, needed: list[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The loss, and its gradients by hidden states, weight and bias (None where not needed)."""
    compute, wide = hidden_ND.dtype, reduction_dtype(hidden_ND.dtype)
    used = _used_ids(task)
    compute_weight_VD = weight_VD[:used].to(compute)
    compute_bias_V = None if bias_V is None else bias_V[:used].to(compute)
    loss = hidden_ND.new_zeros((), dtype=wide)
    by_hidden_ND = torch.empty_like(hidden_ND) if needed[0] else None
    by_weight_VD = torch.zeros_like(weight_VD, dtype=wide) if needed[1] else None
    by_bias_V = torch.zeros_like(bias_V, dtype=wide) if needed[2] and bias_V is not None else None

    for start in range(0, len(hidden_ND), task.chunk):
        rows = slice(start, min(start + task.chunk, len(hidden_ND)))
        raw_CV = F.linear(hidden_ND[rows], compute_weight_VD, compute_bias_V)
        loss += _chunk_loss(raw_CV, rows, task, differentiate=any(needed))
        slope_CV = raw_CV  # _chunk_loss overwrote the logits with their derivative, to save a [C, V] buffer
        if by_hidden_ND is not None:
            torch.mm(slope_CV, compute_weight_VD, out=by_hidden_ND[rows])
        if by_weight_VD is not None:
            _add_product(by_weight_VD[:used], slope_CV, hidden_ND[rows])
        if by_bias_V is not None:
            by_bias_V[:used] += slope_CV.sum(dim=0, dtype=wide)
    by_weight = None if by_weight_VD is None else by_weight_VD.to(weight_VD.dtype)
    by_bias = None if by_bias_V is None or bias_V is None else by_bias_V.to(bias_V.dtype)
    return loss, by_hidden_ND, by_weight, by_bias


def _used_ids(task: _FusedLossInputs) -> int:
    """The number of student ids in the loss: all for cross-entropy, else those that the teacher has too."""
    if task.objective.cross_entropy_weight > 0 or task.teacher_rows is None or task.policy is not None:
        return task.head.vocab_size
    return min(task.head.vocab_size, task.teacher_rows.vocab_size)


def _add_product(total_VD: Tensor, slope_CV: Tensor, hidden_CD: Tensor) -> None:
    """total += slopeᵀ hidden; in place if the dtypes are equal, else summed over chunks in the wider one."""
    if total_VD.dtype == slope_CV.dtype:
        total_VD.addmm_(slope_CV.T, hidden_CD)
    else:
        total_VD += slope_CV.T @ hidden_CD


def _chunk_loss(raw_CV: Tensor, rows: slice, task: _FusedLossInputs, *, differentiate: bool) -> Tensor:
    """The loss of one chunk; overwrites ``raw_CV`` (before factor and cap) with its derivative by tiles."""
    teacher_CS = None
    signal = task.teacher_rows
    if task.teacher_weight and task.objective.needs_teacher and isinstance(signal, DenseRows | MixedRows):
        teacher_CS = signal.raw_logits(rows, min(task.head.vocab_size, signal.vocab_size))
    # On a GPU a chunk is one tile: few large kernels beat cache locality there.
    tile = len(raw_CV) if raw_CV.is_cuda else max(1, TILE_ENTRIES_CPU // raw_CV.shape[1])
    losses = []
    for start in range(0, len(raw_CV), tile):
        in_chunk = slice(start, min(start + tile, len(raw_CV)))
        in_batch = slice(rows.start + in_chunk.start, rows.start + in_chunk.stop)
        raw_nV = raw_CV[in_chunk]
        teacher_nS = None if teacher_CS is None else teacher_CS[in_chunk]
        loss_n, slope_nV = _tile(raw_nV, teacher_nS, in_batch, task)
        if task.weights_N is not None:
            weights_n = task.weights_N[in_batch].to(loss_n.dtype)
            loss_n, slope_nV = loss_n * weights_n, slope_nV.mul_(weights_n[:, None])
        losses.append(loss_n.sum())
        if differentiate:
            raw_nV.copy_(slope_nV)
    return torch.stack(losses).sum()


def _tile(
    raw_nV: Tensor, teacher_nS: Tensor | None, rows: slice, task: _FusedLossInputs
) -> tuple[Tensor, Tensor]:
    """Losses of a tile's rows, [n], and the derivative by ``raw_nV``."""
    logits_nV = task.head.finish_logits(raw_nV.to(reduction_dtype(raw_nV.dtype)))
    if task.policy is None:
        loss_n, slope_nV = _objective(logits_nV, teacher_nS, rows, task)
    else:
        loss_n, slope_nV = policy_gradient(logits_nV, task.labels_N[rows], task.policy, rows)
        if task.teacher_weight:
            # Second, because _objective may overwrite the logits.
            objective_n, objective_nS = _objective(logits_nV, teacher_nS, rows, task)
            task.policy.record(teacher=objective_n)
            loss_n = loss_n + task.teacher_weight * objective_n
            slope_nV[:, : objective_nS.shape[1]].add_(objective_nS, alpha=task.teacher_weight)
    if task.head.softcap is not None:
        # d softcap(x)/dx = 1 − tanh²(x / c). The logits are recomputed: the loss has overwritten them.
        capped_nV = task.head.finish_logits(raw_nV.to(slope_nV.dtype))
        slope_nV = slope_nV * (1 - (capped_nV / task.head.softcap) ** 2)
    return loss_n, slope_nV if task.head.scale == 1.0 else slope_nV * task.head.scale


def _objective(
    logits_nV: Tensor, teacher_nS: Tensor | None, rows: slice, task: _FusedLossInputs
) -> tuple[Tensor, Tensor]:
    """The recipe's objective on a tile, [n], and its derivative by the logits, which may be overwritten."""
    share = task.objective.cross_entropy_weight
    if share == 0:
        loss_n, slope_nV = _divergence(logits_nV, teacher_nS, rows, task)
    else:
        loss_n, slope_nV = cross_entropy(logits_nV, task.labels_N[rows])
        if share < 1:
            loss_n, slope_nV = loss_n * share, slope_nV.mul_(share)
            divergence_n, shared_nS = _divergence(logits_nV, teacher_nS, rows, task)
            loss_n += (1 - share) * divergence_n
            slope_nV[:, : shared_nS.shape[1]].add_(shared_nS, alpha=1 - share)
    return loss_n, slope_nV


def _divergence(
    logits_nV: Tensor, teacher_nS: Tensor | None, rows: slice, task: _FusedLossInputs
) -> tuple[Tensor, Tensor]:
    """T² times the divergence, [n], and its derivative by the logits of the ids that both sides have, [n, S].

    Overwrites the logits. The derivative by z = logits / T is multiplied by T² / T.
    """
    signal, objective = task.teacher_rows, task.objective
    temperature = objective.temperature
    assert signal is not None
    logits_nS = logits_nV[:, : signal.vocab_size]
    if isinstance(signal, DenseRows | MixedRows):
        assert teacher_nS is not None
        teacher_nS = signal.finish_logits(teacher_nS.to(reduction_dtype(teacher_nS.dtype)))
        student = Distribution.from_logits(divide_by_temperature(logits_nS, temperature))
        teacher = Distribution.from_logits(divide_by_temperature(teacher_nS, temperature))
        loss_n, slope_nS = loss_and_gradient(student, teacher, objective)
    elif isinstance(signal, TopKRows):
        loss_n, slope_nS = topk_divergence(
            divide_by_temperature(logits_nS, temperature),
            signal.ids_NK[rows],
            signal.logp_NK1[rows],
            objective,
        )
    else:
        assert isinstance(signal, SampledRows)
        loss_n, slope_nS = sampled_forward_kl(
            divide_by_temperature(logits_nS, temperature), signal.ids_NK[rows], signal.counts_NK[rows]
        )
    if temperature == 1.0:
        return loss_n, slope_nS
    return temperature**2 * loss_n, slope_nS.mul_(temperature)
