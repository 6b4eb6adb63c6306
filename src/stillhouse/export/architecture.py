"""A transformers configuration as the header of a GGUF file.

llama.cpp computes some things from the architecture's name alone (attention scale, activation,
which layers look at a window). A configuration that says otherwise is refused, because the file
would load and answer wrongly. Facts from llama.cpp's converter and `llama-model.cpp`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from stillhouse.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFWriter
    from transformers import PreTrainedConfig

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
}
"""transformers' model_type -> GGUF's name."""

_27B_LAYERS = {"gemma2": 46, "gemma3": 62}  # these alone scale attention by hidden size / heads
_GEMMA2_PERIOD = 2
_GEMMA3_PERIOD = 6


def architecture_of(config: PreTrainedConfig) -> str:
    """GGUF's name of the architecture.

    Raises:
        ModelError: an architecture, or a variant of one, that llama.cpp would compute differently.
    """
    if config.model_type not in ARCHITECTURES:
        raise ModelError(
            f"the architecture {config.model_type!r} cannot be exported to GGUF",
            hint=f"Supported: {', '.join(ARCHITECTURES)}. llama.cpp's own converter may know others.",
        )
    name = ARCHITECTURES[config.model_type]
    gemma = name.startswith("gemma")
    activation = _get(config, "hidden_activation") if gemma else _get(config, "hidden_act")
    _require(config, "activation", activation, "gelu_pytorch_tanh" if gemma else "silu")
    _require(config, "mlp_bias", bool(_get(config, "mlp_bias")), False)
    if name in ("qwen3", "gemma2", "gemma3"):
        _require(config, "attention_bias", bool(_get(config, "attention_bias")), False)
    _require(config, "use_bidirectional_attention", bool(_get(config, "use_bidirectional_attention")), False)
    if gemma:
        _require_gemma(config, name)
    elif config.model_type == "mistral":
        window = _get(config, "sliding_window")
        if window is not None and window < config.max_position_embeddings:
            _refuse(config, "sliding_window", window, None)
    elif "sliding_attention" in (_get(config, "layer_types") or []):
        _refuse(config, "use_sliding_window", True, False)
    _rope(config)
    return name


def add_header(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Sizes, rotary and attention parameters of a configuration that `architecture_of` accepted."""
    name = ARCHITECTURES[config.model_type]
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
    if name == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if name in _27B_LAYERS:
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern(_period(config, name))


def head_size(config: PreTrainedConfig) -> int:
    """Numbers in one attention head."""
    return _get(config, "head_dim") or config.hidden_size // config.num_attention_heads


def rope_factors(config: PreTrainedConfig) -> np.ndarray | None:
    """Divisors [head_dim / 2] of the rotary frequencies where scaling is Llama 3's; else None.

    The formula is Meta's (`apply_scaling` in llama-models); llama.cpp stores its result as a tensor.
    """
    import numpy as np

    rope = _rope(config)
    if rope.get("rope_type") != "llama3":
        return None
    dim, theta = head_size(config), rope["rope_theta"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    original = rope["original_max_position_embeddings"]
    factors = []
    for i in range(dim // 2):
        wave = 2 * math.pi * theta ** (2 * i / dim)
        smooth = (original / wave - low) / (high - low)
        between = 1 / ((1 - smooth) / factor + smooth)
        factors.append(1.0 if wave < original / high else factor if wave > original / low else between)
    return np.array(factors, np.float32)


def _add_rope(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    from gguf import RopeScalingType

    rope = _rope(config)
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


def _rope(config: PreTrainedConfig) -> dict[str, Any]:
    """The rotary parameters of layers that see everything, checked to be of a kind that GGUF can say."""
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
        own = 0.1 * math.log(rope["factor"]) + 1  # what llama.cpp computes; Peng et al. 2023, section 3.4
        if not math.isclose(rope.get("attention_factor") or own, own, rel_tol=1e-3):
            _refuse(config, "attention_factor", rope["attention_factor"], own)
        for key in ("mscale", "mscale_all_dim"):
            _require(config, key, rope.get(key), None)
        _require(config, "truncate", rope.get("truncate", True), True)
    return rope


def _require_gemma(config: PreTrainedConfig, name: str) -> None:
    by_heads = config.hidden_size // config.num_attention_heads
    scalar = by_heads if config.num_hidden_layers == _27B_LAYERS[name] else head_size(config)
    _require(config, "query_pre_attn_scalar", config.query_pre_attn_scalar, scalar)
    capped = {"attn_logit_softcapping": name == "gemma2", "final_logit_softcapping": name == "gemma2"}
    for key, wanted in capped.items():
        if (_get(config, key) is not None) != wanted:
            _refuse(config, key, _get(config, key), "a number" if wanted else None)
    _period(config, name)


def _period(config: PreTrainedConfig, name: str) -> int:
    """Every how many layers one sees everything; the others see a window."""
    sees_all = [kind == "full_attention" for kind in config.layer_types]
    usual = _GEMMA2_PERIOD if name == "gemma2" else _GEMMA3_PERIOD
    for period in (usual, *range(1, len(sees_all) + 2)):
        if sees_all == [(i + 1) % period == 0 for i in range(len(sees_all))]:
            return period
    raise ModelError(
        f"a {config.model_type} whose layers look at windows in no regular order cannot be exported to GGUF",
        hint="Prune whole periods of layers, so that every nth layer still sees everything.",
    )


def _get(config: PreTrainedConfig, key: str) -> Any:
    return getattr(config, key, None)


def _require(config: PreTrainedConfig, key: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        _refuse(config, key, found, wanted)


def _refuse(config: PreTrainedConfig, key: str, found: Any, wanted: Any) -> None:
    raise ModelError(
        f"a {config.model_type} model with {key} {found!r} cannot be exported to GGUF: "
        f"llama.cpp computes it with {wanted!r}",
        hint="Serve the safetensors with transformers instead.",
    )
