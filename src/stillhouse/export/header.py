"""Writes a transformers configuration as the header of a GGUF file.

llama.cpp derives some things from the architecture's name alone (attention scale, activation, which layers
see a window). A configuration that differs is refused, because the file would load and answer wrongly. To
support another architecture, begin in `models/gguf/architectures.py`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from stillhouse.errors import ModelError
from stillhouse.models import MODEL_TYPES, Architecture, GemmaVariant, llama3_rope_factors

if TYPE_CHECKING:
    import numpy as np
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
    activation = _get(config, "hidden_activation" if architecture.gemma else "hidden_act")
    _require(config, "activation", activation, architecture.activation)
    _require(config, "mlp_bias", bool(_get(config, "mlp_bias")), False)
    if architecture.name == "qwen3" or architecture.gemma:
        _require(config, "attention_bias", bool(_get(config, "attention_bias")), False)
    _require(config, "use_bidirectional_attention", bool(_get(config, "use_bidirectional_attention")), False)
    if architecture.gemma:
        _require_gemma(config, architecture.gemma)
    elif config.model_type == "mistral":
        # llama.cpp has no window for the architecture "llama"; one as long as the context changes nothing.
        window = _get(config, "sliding_window")
        if window is not None and window < config.max_position_embeddings:
            _refuse(config, "sliding_window", window, None)
    elif "sliding_attention" in (_get(config, "layer_types") or []):
        _refuse(config, "use_sliding_window", True, False)
    _rope_parameters(config)
    return architecture


def add_header(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Writes the sizes, rotary and attention parameters of a configuration that `architecture_of` accepts."""
    gemma = MODEL_TYPES[config.model_type].gemma
    head_dim = head_size(config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _add_rope(writer, config)
    if gemma and gemma.softcaps:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if gemma:
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern(_window_period(config, gemma))


def head_size(config: PreTrainedConfig) -> int:
    """The width of one attention head."""
    return _get(config, "head_dim") or config.hidden_size // config.num_attention_heads


def rope_factors(config: PreTrainedConfig) -> np.ndarray | None:
    """Divisors [head_dim / 2] of the rotary frequencies where scaling is Llama 3's; else None."""
    import numpy as np

    rope = _rope_parameters(config)
    if rope.get("rope_type") != "llama3":
        return None
    factors = llama3_rope_factors(
        head_size(config),
        rope["rope_theta"],
        factor=rope["factor"],
        low=rope["low_freq_factor"],
        high=rope["high_freq_factor"],
        original_context=rope["original_max_position_embeddings"],
    )
    return np.array(factors, np.float32)


def _add_rope(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    from gguf import RopeScalingType

    rope = _rope_parameters(config)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if config.model_type == "gemma3_text":
        writer.add_rope_freq_base_swa(float(config.rope_parameters["sliding_attention"]["rope_theta"]))
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_yarn_beta_fast(float(rope.get("beta_fast") or 32))
        writer.add_rope_scaling_yarn_beta_slow(float(rope.get("beta_slow") or 1))


def _rope_parameters(config: PreTrainedConfig) -> dict[str, Any]:
    """The rotary parameters of layers with full attention; refuses kinds that GGUF cannot express."""
    rope: dict[str, Any] = config.rope_parameters
    if "full_attention" in rope:
        _require(config, "rope_type", rope["sliding_attention"].get("rope_type", "default"), "default")
        rope = rope["full_attention"]
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "linear", "yarn", "llama3"):
        _refuse(config, "rope_type", kind, "default, linear, yarn or llama3")
    if kind == "llama3" and config.model_type != "llama":
        _refuse(config, "rope_type", kind, "default, linear or yarn")
    _require(config, "partial_rotary_factor", rope.get("partial_rotary_factor") or 1.0, 1.0)
    if kind == "yarn":
        # llama.cpp always uses the paper's attention factor; Peng et al. 2023, section 3.4.
        attention_factor = 0.1 * math.log(rope["factor"]) + 1
        if not math.isclose(rope.get("attention_factor") or attention_factor, attention_factor, rel_tol=1e-3):
            _refuse(config, "attention_factor", rope["attention_factor"], attention_factor)
        for key in ("mscale", "mscale_all_dim"):
            _require(config, key, rope.get(key), None)
        _require(config, "truncate", rope.get("truncate", True), True)
    return rope


def _require_gemma(config: PreTrainedConfig, variant: GemmaVariant) -> None:
    by_heads = config.hidden_size // config.num_attention_heads
    scalar = by_heads if config.num_hidden_layers == variant.layers_of_27b else head_size(config)
    _require(config, "query_pre_attn_scalar", config.query_pre_attn_scalar, scalar)
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if (_get(config, key) is not None) != variant.softcaps:
            _refuse(config, key, _get(config, key), "a number" if variant.softcaps else None)
    _window_period(config, variant)


def _window_period(config: PreTrainedConfig, variant: GemmaVariant) -> int:
    """The period of layers with full attention; the other layers see a window.

    Raises:
        ModelError: the layers do not alternate regularly, and GGUF holds a period only.
    """
    is_full = [kind == "full_attention" for kind in config.layer_types]
    # Try the usual period first: after pruning, several periods can describe the same few layers.
    for period in (variant.window_period, *range(1, len(is_full) + 2)):
        if is_full == [(i + 1) % period == 0 for i in range(len(is_full))]:
            return period
    raise ModelError(
        f"a {config.model_type} whose layers do not alternate in a regular order cannot be exported to GGUF",
        hint="Prune whole periods of layers, so that every nth layer still has full attention.",
    )


def _get(config: PreTrainedConfig, key: str) -> Any:
    return getattr(config, key, None)


def _require(config: PreTrainedConfig, key: str, value: Any, required: Any) -> None:
    if value != required:
        _refuse(config, key, value, required)


def _refuse(config: PreTrainedConfig, key: str, value: Any, required: Any) -> None:
    raise ModelError(
        f"a {config.model_type} model with {key} {value!r} cannot be exported to GGUF: "
        f"llama.cpp computes it with {required!r}",
        hint="Serve the safetensors with transformers instead.",
    )
