"""Writes a transformers configuration as the header of a GGUF file.

llama.cpp derives some things from the architecture's name alone (attention scale, activation, which layers
rotate). A configuration that differs is refused, because the file would load and answer wrongly. What each
architecture needs is in `models/gguf/architectures.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stillhouse.errors import ModelError
from stillhouse.export.rope import USE_TRANSFORMERS, add_rope, refuse, require_rope
from stillhouse.models import MODEL_TYPES, Architecture, head_size

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedConfig


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """The architecture under which the model is exported.

    Raises:
        ModelError: the architecture is not supported, or llama.cpp computes this variant of it differently.
    """
    if config.model_type not in MODEL_TYPES:
        raise ModelError(
            f"the architecture {config.model_type!r} cannot be exported to GGUF",
            hint=f"Supported: {', '.join(MODEL_TYPES)}. llama.cpp's own converter may know others.",
        )
    architecture = MODEL_TYPES[config.model_type]
    settings = config.to_dict()
    for key, required in architecture.required(settings).items():
        value = settings.get(key)
        if value != required and (value or required):  # None, False and empty are the same
            refuse(config, key, value, required)
    if not architecture.optional_bias and "attention_bias" not in architecture.requires:
        _refuse_if(config, "attention_bias", settings)
    _refuse_if(config, "use_bidirectional_attention", settings)
    if architecture.mixed:
        _full_attention_period(config, architecture)
    require_rope(config, architecture)
    return architecture


def add_header(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Writes the sizes, rotary and attention parameters of a configuration that `architecture_of` accepts."""
    architecture, settings = MODEL_TYPES[config.model_type], config.to_dict()
    prefix, head_dim = architecture.name, head_size(settings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(context_length(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    add_rope(writer, config, architecture)
    for key, setting in architecture.counts.items():
        writer.add_uint32(f"{prefix}.{key}", settings[setting])
    for key, setting in architecture.factors.items():
        if settings[setting] is not None:
            writer.add_float32(f"{prefix}.{key}", float(settings[setting]))
    for key, derive in architecture.derived.items():
        value = derive(settings)
        if isinstance(value, list):
            writer.add_array(f"{prefix}.{key}", value)
        else:
            writer.add_uint32(f"{prefix}.{key}", value)
    if architecture.mixed:
        writer.add_uint32(f"{prefix}.{architecture.mixed.key}", _full_attention_period(config, architecture))
        if architecture.mixed.other == "sliding_attention":
            writer.add_sliding_window(config.sliding_window)


def context_length(config: PreTrainedConfig) -> int:
    """The longest context for which the file computes what the model computes.

    Where llama.cpp has no sliding window for the architecture, that is the window: up to its length, a window
    hides nothing.
    """
    window = _window(config)
    if window is None or MODEL_TYPES[config.model_type].mixed:
        return config.max_position_embeddings
    return min(config.max_position_embeddings, window)


def _window(config: PreTrainedConfig) -> int | None:
    """The sliding window of the model; None where no layer has one."""
    layer_types = getattr(config, "layer_types", None)
    if layer_types and "sliding_attention" not in layer_types:
        return None
    return getattr(config, "sliding_window", None) or None


def _full_attention_period(config: PreTrainedConfig, architecture: Architecture) -> int:
    """The period of layers with full attention.

    Raises:
        ModelError: the layers do not alternate regularly, and GGUF holds a period only.
    """
    assert architecture.mixed is not None
    is_full = [kind == "full_attention" for kind in config.layer_types]
    if architecture.mixed.other == "linear_attention" and not any(is_full):
        raise ModelError(  # llama.cpp would end the process
            f"a {config.model_type} without any layer of full attention cannot be exported to GGUF",
            hint=USE_TRANSFORMERS,
        )
    # Try the usual period first: after pruning, several periods can describe the same few layers.
    for period in (architecture.mixed.period, *range(1, len(is_full) + 2)):
        if is_full == [(i + 1) % period == 0 for i in range(len(is_full))]:
            return period
    raise ModelError(
        f"a {config.model_type} whose layers do not alternate in a regular order cannot be exported to GGUF",
        hint="Prune whole periods of layers, so that every nth layer still has full attention.",
    )


def _refuse_if(config: PreTrainedConfig, key: str, settings: dict[str, Any]) -> None:
    if settings.get(key):
        refuse(config, key, settings[key], False)
