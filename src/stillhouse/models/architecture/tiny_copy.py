"""Tiny random copies of an architecture, on which its capabilities are tried.

What a model needs (a mask, a cache, a packed pass) does not follow from its configuration: each architecture
reads its own settings. A copy with few layers, heads and neurons runs in milliseconds, and its sliding
windows and contexts are so short that a trial of 20 tokens reaches beyond them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from stillhouse.errors import ModelError
from stillhouse.models.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

WINDOW = 4
"""Tokens of a sliding window or a chunk in a tiny copy."""
CONTEXT = 64
"""Tokens of the (original) context of a tiny copy."""
VOCABULARY = 64
_NEURONS = 32
_MOST_LAYERS = 6
_LONGEST_PERIOD = 10
_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts")
_ACTIVE_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts")


def tiny_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """``config`` with few layers, heads and neurons, short windows and contexts, and a small vocabulary.

    Layers of each kind are kept. Head sizes, groups of experts and ranks stay as they are, since many
    settings must fit them.

    Raises:
        ModelError: transformers rejects such a configuration, or it has no attention heads.
    """
    if getattr(config, "num_attention_heads", None) is None:
        raise ModelError(f"a {config.model_type} model has no attention heads to reduce")
    entries = config.to_dict()
    changes: dict[str, Any] = {}
    names = dict(config.attribute_map)

    def change(name: str, value: Any) -> None:
        if getattr(config, name, None) is not None:
            changes[names.get(name, name)] = value

    for name, value in entries.items():
        if name.endswith("token_id"):
            changes[name] = None
        elif type(value) is int and value > WINDOW and re.search("window|chunk_size", name):
            changes[name] = WINDOW
        elif type(value) is int and value > _NEURONS and re.search("intermediate|ffn_dim|ffn_hidden", name):
            changes[name] = _NEURONS
    change("vocab_size", VOCABULARY)
    change("max_position_embeddings", 2 * CONTEXT)
    change("original_max_position_embeddings", CONTEXT)
    if rope := entries.get("rope_parameters"):
        changes["rope_parameters"] = _short_contexts(rope)
    heads, kv_heads = (getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads"))
    if isinstance(heads, int) and heads > 4:
        groups = heads // (kv_heads or heads)
        few_kv_heads = min(kv_heads or heads, 2)
        few_heads = few_kv_heads * min(groups, 2)
        change("num_attention_heads", few_heads)
        change("num_key_value_heads", few_kv_heads)
        # The head size often follows from the width, and the rotations must fit it.
        change("hidden_size", config.hidden_size // heads * few_heads)
    if entries.get("n_group") in (None, 1):
        for name in _EXPERTS:
            if isinstance(entries.get(name), int):
                changes[name] = min(entries[name], 4)
        for name in _ACTIVE_EXPERTS:
            if isinstance(entries.get(name), int):
                changes[name] = min(entries[name], 2)
    changes |= _few_layers(entries, config.num_hidden_layers, names)
    changes |= {"dtype": "float32", "quantization_config": None}
    changes |= {name: 1 for name in ("first_k_dense_replace", "max_window_layers") if entries.get(name)}
    try:
        with quiet_transformers():
            return type(config).from_dict({**entries, **changes})
    except Exception as error:  # configurations are checked by third-party code of every kind
        raise ModelError(f"no small copy of a {config.model_type} model can be made: {error}") from error


def architecture_key(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> Hashable:
    """A key for results of trials: equal for models that differ in their sizes alone.

    Raises:
        ModelError: as :func:`tiny_config`.
    """
    attention = str(getattr(config, "_attn_implementation", None))
    entries = tiny_config(config).to_dict()
    return model_class, attention, json.dumps(entries, sort_keys=True, default=str)


def tiny_copy(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A random float32 ``model_class`` with :func:`tiny_config`, in eval mode; the same each time.

    Raises:
        ModelError: transformers cannot build it.
    """
    import torch

    small = tiny_config(config)
    attention = getattr(config, "_attn_implementation", None)
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(0)
        try:
            model = model_class._from_config(small, attn_implementation=attention, dtype=torch.float32)
        except Exception as error:  # as above
            raise ModelError(f"no small copy of a {config.model_type} model can be built: {error}") from error
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:  # wide, so that it matters what a token attends to
                    parameter.normal_(0, parameter.shape[-1] ** -0.5)
    return model.eval()


def _short_contexts(rope: Any) -> Any:
    """Rotation parameters with short original contexts, also where they are nested by kind of layer."""
    if not isinstance(rope, dict):
        return rope
    short = {name: _short_contexts(value) for name, value in rope.items()}
    if short.get("original_max_position_embeddings"):
        short["original_max_position_embeddings"] = CONTEXT
    return short


def _period(entries: dict[str, Any]) -> int:
    """Layers after which their kinds repeat, where a configuration has a rule and no list (Jamba); else 0."""
    periods = [
        value for name, value in entries.items() if type(value) is int and re.search("period|interval", name)
    ]
    patterns = [
        len(value)
        for name, value in entries.items()
        if isinstance(value, list) and value and isinstance(value[0], str) and "type" in name
    ]
    return max([length for length in (*periods, *patterns) if length <= _LONGEST_PERIOD], default=0)


def _few_layers(entries: dict[str, Any], layers: int, names: dict[str, str]) -> dict[str, Any]:
    """Configuration entries that keep the first layer of each kind, and at least two layers."""
    lists = {
        name: value for name, value in entries.items() if isinstance(value, list) and len(value) == layers
    }
    kinds = [tuple(str(values[layer]) for values in lists.values()) for layer in range(layers)]
    kept = sorted({kinds.index(kind) for kind in kinds})[:_MOST_LAYERS]
    if len(kept) == 1:
        kept = list(range(min(layers, max(2, _period(entries)))))
    count = {names.get("num_hidden_layers", "num_hidden_layers"): len(kept)}
    return count | {name: [values[layer] for layer in kept] for name, values in lists.items()}
