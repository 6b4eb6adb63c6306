"""The architectures that can be loaded from GGUF and exported to it.

Add an architecture:

1. Add an entry to :data:`ARCHITECTURES`: its names, its tensors, and how GGUF stores their values.
2. Reading: map its header fields in `transformers_config` (`models/gguf/config.py`).
3. Writing: write its header fields, and refuse the variants that llama.cpp computes differently, in
   `export/header.py`. Tensor names come from the `gguf` package there.
4. Add a case to `tests/models/gguf/test_gguf_weights.py` and `tests/export/test_export_weights.py`. They
   compare with transformers and with llama.cpp.

Facts from llama.cpp's `convert_hf_to_gguf.py` and `llama-model.cpp`, and the models' own configuration files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

MODEL_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
"""GGUF's name -> transformers' name, of tensors outside of the layers."""
_LLAMA_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA_LAYER = _LLAMA_LAYER | {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


@dataclass(frozen=True)
class GemmaVariant:
    """What llama.cpp derives from the name of a Gemma generation instead of reading it from the header."""

    window_period: int
    """One layer in so many attends to the whole sequence; the others see a window."""
    layers_of_27b: int
    """The model with so many layers is the 27B, which alone scales attention by hidden size / heads."""
    softcaps: bool
    """Whether attention scores and logits are capped."""


@dataclass(frozen=True)
class Architecture:
    """One architecture, as GGUF and transformers name and store it."""

    name: str
    """GGUF's `general.architecture`."""
    model_types: tuple[str, ...]
    """transformers' `model_type`s that are exported as this one; a file is loaded as the first."""
    model_class: str
    """transformers' class."""
    layer_tensors: Mapping[str, str]
    """GGUF's name -> transformers' name, of the tensors of a layer."""
    activation: str = "silu"
    interleaved_heads: bool = False
    """Whether the rows of query and key weights are interleaved (see :func:`interleaved_rows`)."""
    norm_offset: int = 0
    """What GGUF adds to norm weights: Gemma multiplies by 1 + weight, llama.cpp by what the file holds."""
    gemma: GemmaVariant | None = None


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("llama", ("llama", "mistral"), "LlamaForCausalLM", _LLAMA_LAYER, interleaved_heads=True),
        Architecture("qwen2", ("qwen2",), "Qwen2ForCausalLM", _LLAMA_LAYER),
        Architecture("qwen3", ("qwen3",), "Qwen3ForCausalLM", _LLAMA_LAYER),
        Architecture(
            "gemma2",
            ("gemma2",),
            "Gemma2ForCausalLM",
            _GEMMA_LAYER,
            activation="gelu_pytorch_tanh",
            norm_offset=1,
            gemma=GemmaVariant(window_period=2, layers_of_27b=46, softcaps=True),
        ),
        Architecture(
            "gemma3",
            ("gemma3_text",),
            "Gemma3ForCausalLM",
            _GEMMA_LAYER,
            activation="gelu_pytorch_tanh",
            norm_offset=1,
            gemma=GemmaVariant(window_period=6, layers_of_27b=62, softcaps=False),
        ),
    )
}
"""GGUF's `general.architecture` -> the architecture."""

MODEL_TYPES = {
    model_type: architecture
    for architecture in ARCHITECTURES.values()
    for model_type in architecture.model_types
}
"""transformers' `model_type` -> the architecture."""


def from_gguf_values(
    architecture: Architecture, name: str, values: np.ndarray, *, heads: int, kv_heads: int
) -> np.ndarray:
    """The values of GGUF's tensor ``name`` as transformers stores them."""
    if (count := _interleaved(architecture, name, heads, kv_heads)) is not None:
        return values[separated_rows(count, len(values))]
    return values - architecture.norm_offset if _is_offset(architecture, name) else values


def to_gguf_values(
    architecture: Architecture, name: str, values: np.ndarray, *, heads: int, kv_heads: int
) -> np.ndarray:
    """The values of GGUF's tensor ``name``, from those that transformers stores."""
    if (count := _interleaved(architecture, name, heads, kv_heads)) is not None:
        return values[interleaved_rows(count, len(values))]
    return values + architecture.norm_offset if _is_offset(architecture, name) else values


def interleaved_rows(heads: int, rows: int) -> list[int]:
    """The order of Llama's query and key rows in GGUF: row r of the file is row ``order[r]`` of the model.

    transformers rotates the two halves of a head, llama.cpp neighbouring pairs. So row ``half * dim/2 + i``
    of each head moves to ``2 * i + half``.
    """
    dim = rows // heads
    return [
        head * dim + half * (dim // 2) + i
        for head in range(heads)
        for i in range(dim // 2)
        for half in range(2)
    ]


def separated_rows(heads: int, rows: int) -> list[int]:
    """The inverse of :func:`interleaved_rows`: row r of the model is row ``order[r]`` of the file.

    A damaged file whose rows do not divide evenly gives fewer rows, which the caller finds to be missing.
    """
    dim = rows // heads
    return [head * dim + 2 * i + half for head in range(heads) for half in range(2) for i in range(dim // 2)]


def _interleaved(architecture: Architecture, name: str, heads: int, kv_heads: int) -> int | None:
    """The number of heads of a tensor with interleaved rows; None for other tensors."""
    if not architecture.interleaved_heads:
        return None
    return heads if ".attn_q." in name else kv_heads if ".attn_k." in name else None


def _is_offset(architecture: Architecture, name: str) -> bool:
    return architecture.norm_offset != 0 and name.endswith("norm.weight")


def llama3_rope_factors(
    dim: int, theta: float, *, factor: float, low: float, high: float, original_context: int
) -> list[float]:
    """Divisors [dim / 2] of the rotary frequencies with Llama 3's scaling.

    The formula is Meta's (`apply_scaling` in llama-models). GGUF stores its result as a tensor.

    Args:
        low, high: `low_freq_factor` and `high_freq_factor`.
    """
    factors = []
    for i in range(dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * i / dim)
        smooth = (original_context / wavelength - low) / (high - low)
        if wavelength < original_context / high:
            factors.append(1.0)
        elif wavelength > original_context / low:
            factors.append(factor)
        else:
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors
