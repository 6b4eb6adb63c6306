"""Width pruning: fewer MLP neurons, attention heads or hidden channels in every layer.

The parts with the largest mean activation (``importance``) are kept, as in Minitron (Muralidharan et al.
2024). Heads are removed in whole key-value groups, so that grouped attention keeps its shape. Removing a
neuron or a group is exactly equivalent to silencing it. Removing hidden channels is not, because norms are
taken over the remaining channels: their scales are corrected by the measured share of energy, which is right
only on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stillhouse.distill.students.decoder import layer_prefix, rebuild
from stillhouse.distill.students.importance import WidthImportance, head_size, norms_of
from stillhouse.errors import ModelError, RecipeError

AXES: dict[str, tuple[str | None, ...]] = {
    "embed_tokens.weight": (None, "hidden"),
    "lm_head.weight": (None, "hidden"),
    "norm.weight": ("hidden",),
    "input_layernorm.weight": ("hidden",),
    "post_attention_layernorm.weight": ("hidden",),
    "pre_feedforward_layernorm.weight": ("hidden",),
    "post_feedforward_layernorm.weight": ("hidden",),
    "q_proj.weight": ("query", "hidden"),
    "q_proj.bias": ("query",),
    "q_norm.weight": (None,),
    "k_proj.weight": ("key", "hidden"),
    "k_proj.bias": ("key",),
    "k_norm.weight": (None,),
    "v_proj.weight": ("key", "hidden"),
    "v_proj.bias": ("key",),
    "o_proj.weight": ("hidden", "query"),
    "o_proj.bias": ("hidden",),
    "gate_proj.weight": ("neuron", "hidden"),
    "gate_proj.bias": ("neuron",),
    "up_proj.weight": ("neuron", "hidden"),
    "up_proj.bias": ("neuron",),
    "down_proj.weight": ("hidden", "neuron"),
    "down_proj.bias": ("hidden",),
}
"""The unit of each axis of each parameter, by the last two parts of its name."""


@dataclass(frozen=True)
class WidthSelection:
    """The parts to keep, as sorted indices per layer; an empty list (or None) keeps all of them."""

    neurons: list[Tensor] = field(default_factory=list)
    groups: list[Tensor] = field(default_factory=list)
    channels: Tensor | None = None


def select_width(
    model: PreTrainedModel,
    importance: WidthImportance,
    *,
    intermediate: int | None,
    heads: int | None,
    hidden: int | None,
) -> WidthSelection:
    """Selects the most active neurons, key-value groups and hidden channels, as many as set.

    Raises:
        RecipeError: the model has fewer.
        ModelError: hidden channels are set, and the model scales its embeddings by their number.
    """
    config = model.config
    _check("intermediate", intermediate, config.intermediate_size, "MLP neurons")
    _check("heads", heads, config.num_key_value_heads, "key-value head groups")
    _check("hidden", hidden, config.hidden_size, "hidden channels")
    if hidden is not None and config.model_type.startswith("gemma"):
        raise ModelError(
            f"student.hidden: hidden channels of a {config.model_type} model cannot be removed: "
            "it scales its embeddings by their number",
            hint="Remove layers, neurons or heads instead.",
        )
    return WidthSelection(
        neurons=[]
        if intermediate is None
        else [_top(scores, intermediate) for scores in importance.neurons_LI],
        groups=[] if heads is None else [_top(scores, heads) for scores in importance.groups_LK],
        channels=None if hidden is None else _top(importance.channels_D, hidden),
    )


def prune_width(model: PreTrainedModel, cut: WidthSelection) -> PreTrainedModel:
    """A copy of ``model`` with only the selected parts.

    Raises:
        ModelError: the axes of a parameter are not known.
    """
    prefix = layer_prefix(model)
    state = {}
    for name, value in model.state_dict().items():
        kind = ".".join(name.split(".")[-2:])
        if kind not in AXES or len(AXES[kind]) != value.ndim:
            raise ModelError(
                f"cannot prune the width of a {model.config.model_type} model: unknown parameter {name}"
            )
        layer = int(name.removeprefix(prefix).split(".", 1)[0]) if name.startswith(prefix) else None
        for axis, counted in enumerate(AXES[kind]):
            indices = _kept(model, cut, counted, layer)
            if indices is not None:
                value = value.index_select(axis, indices.to(value.device))
        state[name] = value
    return rebuild(model, _changes(model, cut), state)


@torch.no_grad()
def correct_norms(model: PreTrainedModel, energy_D: Sequence[Tensor], channels: Tensor) -> None:
    """Scales each norm of a channel-pruned model by the root of the kept channels' mean energy.

    An RMS norm divides by the root mean square over its channels. Over the kept channels
    this is c times the original, with c^2 their mean squared share (1 if they are average); a factor
    c restores the parent's output, on average over the calibration text.

    Args:
        energy_D: for each norm of the parent, the mean over tokens of its squared input divided
            by the token's mean square.
    """
    for norm, energy in zip(norms_of(model), energy_D, strict=True):
        norm.get_parameter("weight").mul_(energy[channels].mean().sqrt().item())


def _kept(
    model: PreTrainedModel, cut: WidthSelection, counted: str | None, layer: int | None
) -> Tensor | None:
    """The indices to keep on an axis, or None for all."""
    if counted == "hidden":
        return cut.channels
    if counted == "neuron" and cut.neurons:
        assert layer is not None
        return cut.neurons[layer]
    if counted in ("query", "key") and cut.groups:
        assert layer is not None
        config = model.config
        width = head_size(config)
        if counted == "query":
            width *= config.num_attention_heads // config.num_key_value_heads
        return (cut.groups[layer][:, None] * width + torch.arange(width)).flatten()
    return None


def _changes(model: PreTrainedModel, cut: WidthSelection) -> dict[str, Any]:
    config = model.config
    changes: dict[str, Any] = {}
    if cut.groups or cut.channels is not None:
        changes["head_dim"] = head_size(config)  # else transformers derives it from the smaller width
    if cut.neurons:
        changes["intermediate_size"] = len(cut.neurons[0])
    if cut.groups:
        groups = len(cut.groups[0])
        changes["num_key_value_heads"] = groups
        changes["num_attention_heads"] = groups * (config.num_attention_heads // config.num_key_value_heads)
    if cut.channels is not None:
        changes["hidden_size"] = len(cut.channels)
    return changes


def _top(scores: Tensor, count: int) -> Tensor:
    """Sorted indices of the ``count`` highest scores; of equal scores the later is dropped."""
    ranked = torch.sort(scores, descending=True, stable=True).indices[:count]
    return ranked.sort().values.cpu()


def _check(key: str, count: int | None, available: int, unit: str) -> None:
    if count is not None and not 1 <= count <= available:
        raise RecipeError(f"student.{key}: cannot keep {count} {unit}: the model has {available}")
