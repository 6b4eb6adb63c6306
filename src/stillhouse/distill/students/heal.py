"""Heals a depth-pruned student: fits a linear map for each run of removed layers, on calibration text.

After ReplaceMe (Shopkhoev et al. 2025, arXiv 2505.02819): the layer before the gap gets its
MLP output m replaced by m T, with T chosen by least squares so that its output
approximates that of the removed layers. T is multiplied into ``down_proj``, so the model gets no
new parameters.

Three choices differ from the paper. Tokens are weighted by the inverse square of their
target's length, because an RMS norm follows, to which only relative errors matter (and a few
tokens are a thousand times longer than the rest). The ridge pulls T to the identity, which is
the unhealed model, not to zero. Gaps are fitted in order, each on the output of the student
with its earlier gaps healed, so that later maps correct errors of earlier ones.

Healing is impossible if no layer precedes the gap, or if a norm follows the MLP (gemma2 and
gemma3; see :func:`can_heal`). It restores hidden states on text like the calibration text, with
no guarantee for other text.

Shapes: N calibration tokens, D hidden channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stillhouse.distill.students.decoder import layers_of
from stillhouse.distill.students.importance import ResidualStream, temporary_hooks
from stillhouse.distill.students.prune_depth import removed_runs

RIDGE = 0.1
"""Pull to the identity, in units of the mean square of an MLP output channel; see docs/students.md."""


@dataclass(frozen=True)
class HealedRun:
    """One healed gap: the removed layers, and the error with and without the map."""

    first: int
    last: int
    error_before: float
    """Weighted squared error at the gap over the weighted square of the target, without the map."""
    error_after: float
    """The same with the map."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def can_heal(model: PreTrainedModel) -> bool:
    """Whether the MLP's output is added to the residual stream unchanged, so that a map can be merged."""
    return not any(hasattr(layer, "post_feedforward_layernorm") for layer in layers_of(model))


def fit_map(mlp_ND: Tensor, residual_ND: Tensor, weights_N: Tensor, ridge: float) -> Tensor:
    """The matrix T [D, D] that minimises sum_n w_n |m_n T - m_n - r_n|^2 + ridge * s * |T - I|^2.

    ``r`` is the target minus the layer's output and ``s`` the mean over channels of
    sum_n w_n m_n^2, which makes ``ridge`` dimensionless. Solved by the normal equations in float64.
    """
    mlp_ND, residual_ND = mlp_ND.double(), residual_ND.double()
    weighted_ND = mlp_ND * weights_N.double()[:, None]
    gram_DD = weighted_ND.T @ mlp_ND
    identity_DD = torch.eye(len(gram_DD), dtype=gram_DD.dtype, device=gram_DD.device)
    pull = ridge * gram_DD.diagonal().mean()
    return identity_DD + torch.linalg.solve(gram_DD + pull * identity_DD, weighted_ND.T @ residual_ND)


@torch.no_grad()
def heal(
    student: PreTrainedModel, keep: Sequence[int], teacher: ResidualStream, *, ridge: float = RIDGE
) -> list[HealedRun]:
    """Fits and merges a map for every run of removed layers, first to last, in place.

    Args:
        student: the depth-pruned model.
        keep: the indices of its layers in the parent.
        teacher: the parent's residual stream over the calibration text.
    """
    layers = layers_of(student)
    runs = {first: (first, end) for first, end in removed_runs(keep, len(teacher.hidden_ND) - 1)}
    runs.pop(0, None)  # no layer precedes it that could hold a map
    healed = []
    hidden_ND = teacher.hidden_ND[0]
    for layer, parent_index in zip(layers, keep, strict=True):
        if not runs:
            break
        calls = [document[parent_index] for document in teacher.calls]
        output_ND, mlp_ND = _run_layer(layer, hidden_ND, teacher.lengths, calls)
        run = runs.pop(parent_index + 1, None)
        if run is not None:
            target_ND = teacher.hidden_ND[run[1]]
            weights_N = _inverse_squares(target_ND)
            map_DD = fit_map(mlp_ND, target_ND - output_ND, weights_N, ridge)
            before = _relative_error(output_ND, target_ND, weights_N)
            output_ND = output_ND + (mlp_ND.double() @ map_DD - mlp_ND).to(output_ND.dtype)
            after = _relative_error(output_ND, target_ND, weights_N)
            _merge(layer.get_submodule("mlp.down_proj"), map_DD)
            healed.append(HealedRun(run[0], run[1] - 1, before, after))
        hidden_ND = output_ND
    return healed


def _run_layer(
    layer: nn.Module, hidden_ND: Tensor, lengths: Sequence[int], calls: Sequence[dict[str, Any]]
) -> tuple[Tensor, Tensor]:
    """Runs one layer over all documents; returns its output and its MLP's output, both [N, D]."""
    mlp: list[Tensor] = []
    handle = layer.get_submodule("mlp").register_forward_hook(
        lambda _module, _args, output: mlp.append(output[0])
    )
    with temporary_hooks([handle]):
        documents = zip(hidden_ND.split(list(lengths)), calls, strict=True)
        output = [layer(hidden_TD[None], **call)[0] for hidden_TD, call in documents]
    return torch.cat(output), torch.cat(mlp)


def _inverse_squares(target_ND: Tensor) -> Tensor:
    """1 / |target|^2 of each token; 0 for a target of zero, which a padding token may have."""
    squares_N = target_ND.double().square().sum(-1)
    return torch.where(squares_N > 0, 1.0 / squares_N, 0.0)


def _relative_error(output_ND: Tensor, target_ND: Tensor, weights_N: Tensor) -> float:
    """Mean over tokens of |output - target|^2 / |target|^2 (the weights are the inverse squares)."""
    return (weights_N * (target_ND - output_ND).double().square().sum(-1)).mean().item()


def _merge(down_proj: nn.Module, map_DD: Tensor) -> None:
    """Multiplies the map into the layer: (x W' + b) T = x (T' W)' + b T."""
    assert isinstance(down_proj, nn.Linear)
    weight_DI = down_proj.weight
    weight_DI.copy_(map_DD.T @ weight_DI.double())
    if down_proj.bias is not None:
        down_proj.bias.copy_(down_proj.bias.double() @ map_DD)
