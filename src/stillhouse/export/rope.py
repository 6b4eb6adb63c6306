"""Rotary parameters as GGUF's header fields and tensors; what GGUF cannot express is refused.

With LongRoPE, transformers uses the factors for long texts as soon as a text is longer than the original
context. llama.cpp decides once, by the context that it is started with.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from stillhouse.errors import ModelError
from stillhouse.models import Architecture, head_size, llama3_rope_factors

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedConfig

USE_TRANSFORMERS = "Use the safetensors with transformers or vLLM instead."


def require_rope(config: PreTrainedConfig, architecture: Architecture) -> None:
    """Raises ModelError for rotary parameters that llama.cpp computes differently."""
    rope = _full_attention(config)
    kind = rope.get("rope_type", "default")
    if kind not in architecture.rope_types:
        *others, last = architecture.rope_types
        refuse(config, "rope_type", kind, f"{', '.join(others)} or {last}" if others else last)
    if rope.get("partial_rotary_factor", 1.0) not in (None, 1.0) and not architecture.partial_rotary:
        refuse(config, "partial_rotary_factor", rope["partial_rotary_factor"], "1.0")
    if "rope.dimension_sections" in architecture.derived:
        settings = config.to_dict()
        *shares, _ = architecture.derived["rope.dimension_sections"](settings)
        if sum(shares) > head_size(settings):  # llama.cpp would abort the process that loads the file
            refuse(config, "mrope_section", shares, f"at most {head_size(settings)} in all")
    if "sliding_attention" in config.rope_parameters:
        local = config.rope_parameters["sliding_attention"]
        if (local_kind := local.get("rope_type", "default")) != "default":
            refuse(config, "rope_type", local_kind, "default, in layers with a window")
        if architecture.name == "olmo2" and local["rope_theta"] != rope["rope_theta"]:
            refuse(config, "rope_theta", local["rope_theta"], f"{rope['rope_theta']}, in every layer")
    if kind == "yarn":
        _require_yarn(config, rope)


def add_rope(writer: GGUFWriter, config: PreTrainedConfig, architecture: Architecture) -> None:
    """Writes the rotary fields of the header."""
    from gguf import RopeScalingType

    rope = _full_attention(config)
    kind = rope.get("rope_type", "default")
    writer.add_rope_dimension_count(_rotary_size(config))
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if "sliding_attention" in config.rope_parameters:
        writer.add_rope_freq_base_swa(float(config.rope_parameters["sliding_attention"]["rope_theta"]))
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
    if kind == "longrope":
        writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_attn_factors(_longrope_attention_factor(config, rope))
    if architecture.name == "phi3":
        # Versions of llama.cpp before May 2025 guess a window for files without this field.
        writer.add_sliding_window(0)


def rope_tensors(config: PreTrainedConfig) -> dict[str, np.ndarray]:
    """GGUF's tensors of divisors of the rotary frequencies [rotary size / 2], by name."""
    rope = _full_attention(config)
    if rope.get("rope_type") == "longrope":
        return {
            "rope_factors_long.weight": np.array(rope["long_factor"], np.float32),
            "rope_factors_short.weight": np.array(rope["short_factor"], np.float32),
        }
    if rope.get("rope_type") != "llama3":
        return {}
    factors = llama3_rope_factors(
        _rotary_size(config),
        rope["rope_theta"],
        factor=rope["factor"],
        low=rope["low_freq_factor"],
        high=rope["high_freq_factor"],
        original_context=rope["original_max_position_embeddings"],
    )
    return {"rope_freqs.weight": np.array(factors, np.float32)}


def original_context(config: PreTrainedConfig) -> int | None:
    """The context beyond which LongRoPE uses other factors; None for other kinds of scaling."""
    rope = _full_attention(config)
    return rope["original_max_position_embeddings"] if rope.get("rope_type") == "longrope" else None


def _full_attention(config: PreTrainedConfig) -> dict[str, Any]:
    """The rotary parameters of layers with full attention."""
    rope: dict[str, Any] = config.rope_parameters
    return rope.get("full_attention", rope)


def _rotary_size(config: PreTrainedConfig) -> int:
    share = _full_attention(config).get("partial_rotary_factor") or 1.0
    return int(head_size(config.to_dict()) * share)


def _require_yarn(config: PreTrainedConfig, rope: dict[str, Any]) -> None:
    # llama.cpp always uses the paper's attention factor; Peng et al. 2023, section 3.4.
    attention_factor = 0.1 * math.log(rope["factor"]) + 1
    if not math.isclose(rope.get("attention_factor") or attention_factor, attention_factor, rel_tol=1e-3):
        refuse(config, "attention_factor", rope["attention_factor"], attention_factor)
    for key in ("mscale", "mscale_all_dim"):
        if rope.get(key) is not None:
            refuse(config, key, rope[key], None)
    if not rope.get("truncate", True):
        refuse(config, "truncate", False, True)


def _longrope_attention_factor(config: PreTrainedConfig, rope: dict[str, Any]) -> float:
    """The factor of the attention scores; Ding et al. 2024 (LongRoPE), as Phi-3 has it."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    original = rope["original_max_position_embeddings"]
    factor = rope.get("factor") or config.max_position_embeddings / original
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def refuse(config: PreTrainedConfig, key: str, value: Any, required: Any) -> NoReturn:
    """Raises ModelError for a setting that llama.cpp would compute with another value."""
    raise ModelError(
        f"{config.model_type} models with {key} {value!r} cannot be exported to GGUF: "
        f"llama.cpp computes them with {required!r}",
        hint=USE_TRANSFORMERS,
    )
