"""Access to the layers of a decoder-only transformer for pruning, and rebuilding of the smaller model.

Works for models whose layers are named as in Llama: ``self_attn.{q,k,v,o}_proj``,
``mlp.{gate,up,down}_proj`` and RMS norms (llama, mistral, qwen2, qwen3, gemma, smollm3 …).
Mixtures of experts, fused projections and encoders are not supported: they raise an error
that names them, instead of being cut in the wrong place.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from stillhouse.errors import ModelError

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PER_LAYER = ("layer_types", "no_rope_layers")
"""Configuration entries with one value per layer."""


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder's layers, first to last.

    Raises:
        ModelError: the model's layers are not named as in Llama.
    """
    layers = getattr(getattr(model, model.base_model_prefix, None), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ModelError(f"cannot prune a {model.config.model_type} model: it has no list of decoder layers")
    for layer in layers:
        names = {name.rsplit(".", 1)[-1] for name, _ in layer.named_modules()}
        missing = [name for name in LINEARS if name not in names]
        if missing:
            raise ModelError(
                f"cannot prune a {model.config.model_type} model: its layers have no {missing[0]}",
                hint="Models with layers named as in Llama can be pruned: llama, mistral, qwen2, qwen3 …",
            )
    return layers


def layer_prefix(model: PreTrainedModel) -> str:
    """The prefix of the layers' parameter names, e.g. ``model.layers.``."""
    return f"{model.base_model_prefix}.layers."


def per_layer_entries(config: PreTrainedConfig, keep: Sequence[int]) -> dict[str, list[Any]]:
    """The configuration's per-layer lists, for the layers in ``keep`` only."""
    lists = {name: getattr(config, name, None) for name in PER_LAYER}
    return {name: [values[layer] for layer in keep] for name, values in lists.items() if values}


def rebuild(
    model: PreTrainedModel, changes: Mapping[str, Any], state: Mapping[str, Tensor]
) -> PreTrainedModel:
    """Builds a model of the same class with a changed configuration and the parameters in ``state``.

    Args:
        model: the parent; not changed.
        changes: configuration entries that differ from the parent's.
        state: every parameter of the new model, by name; copied.

    Raises:
        ModelError: transformers rejects the configuration (e.g. heads that do not divide the width).
    """
    entries = {**model.config.to_dict(), **changes}
    try:
        config = type(model.config).from_dict(entries)
    except (StrictDataclassError, ValueError) as error:
        raise ModelError(f"the pruned model would not be valid: {root_message(error)}") from error
    config._name_or_path = ""
    with no_init_weights():
        rebuilt = type(model)(config)
    nn.Module.to(rebuilt, next(model.parameters()).device, torch.float32)
    rebuilt.load_state_dict(state, strict=True)
    rebuilt.tie_weights()
    rebuilt.generation_config = copy.deepcopy(model.generation_config)
    return rebuilt.eval()


def root_message(error: BaseException) -> str:
    """The message of the innermost cause: transformers wraps the one that matters."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return " ".join(str(error).split())
