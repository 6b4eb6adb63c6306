"""A GGUF header as a transformers configuration, and the names of its tensors in transformers.

Architectures that are not in :data:`~stillhouse.models.gguf.architectures.ARCHITECTURES` are refused by name
rather than loaded half right.
"""

from __future__ import annotations

import math
import re
import struct
from typing import Any

from stillhouse.errors import ModelError
from stillhouse.models.gguf.architectures import (
    ARCHITECTURES,
    MODEL_TENSORS,
    Architecture,
    GemmaVariant,
    llama3_rope_factors,
)
from stillhouse.models.gguf.file import GgufFile

_TENSOR = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")

# Llama 3.1 and later stretch low frequencies; the constants are those of Meta's own configurations.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_GEMMA_LOCAL_THETA = 10_000.0
_DAMAGED = "Download the file again, or convert the model again."


def transformers_name(architecture: Architecture, name: str) -> str | None:
    """The parameter that tensor ``name`` fills; None for one that transformers computes itself."""
    if name == "rope_freqs.weight":
        return None
    match = _TENSOR.fullmatch(name)
    if match:
        layer, module, suffix = match.groups()
        names = MODEL_TENSORS if layer is None else architecture.layer_tensors
        if module in names:
            prefix = "" if layer is None else f"model.layers.{layer}."
            return f"{prefix}{names[module]}.{suffix}"
    raise ModelError(
        f"a {architecture.name} model has no tensor {name!r}",
        hint="The file is of a variant that is not supported; use the original safetensors.",
    )


def transformers_config(file: GgufFile, *, llama3_factors: list[float] | None = None) -> dict[str, Any]:
    """transformers' configuration of the model in ``file``.

    Args:
        llama3_factors: the values of the tensor `rope_freqs.weight`, where the file has one.

    Raises:
        ModelError: an architecture, or a variant of one, that is not supported.
    """
    name = file.architecture
    if name not in ARCHITECTURES or file.architecture_field("expert_count", 0):
        kind = f"{name} with experts" if name in ARCHITECTURES else name
        raise ModelError(
            f"{file.path}: the architecture {kind!r} cannot be loaded for training from GGUF",
            hint=f"Supported: {', '.join(ARCHITECTURES)}. Others: use the original safetensors directory.",
        )
    architecture = ARCHITECTURES[name]
    _require_numbers(file)
    heads = file.require(f"{name}.attention.head_count")
    hidden = file.require(f"{name}.embedding_length")
    if not isinstance(heads, int):
        raise ModelError(f"{file.path}: layers with different numbers of heads are not supported")
    head_dim = _head_dim(file, hidden, heads)
    theta = round_f32(file.architecture_field("rope.freq_base", 10_000.0))
    config = {
        "model_type": architecture.model_types[0],
        "architectures": [architecture.model_class],
        "vocab_size": _vocab_size(file),
        "hidden_size": hidden,
        "intermediate_size": file.require(f"{name}.feed_forward_length"),
        "num_hidden_layers": file.require(f"{name}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.architecture_field("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": file.require(f"{name}.context_length"),
        "rms_norm_eps": round_f32(file.require(f"{name}.attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": _rope_parameters(file, theta, llama3_factors),
        **_token_ids(file),
    }
    if name == "qwen2" and head_dim == hidden // heads:
        del config["head_dim"]  # not a field of that configuration
    if name == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    if name == "qwen3":
        config["attention_bias"] = False
    if architecture.gemma:
        config |= _gemma_fields(file, config, architecture.gemma)
    return config


def round_f32(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05 rather than 9.999999747378752e-06."""
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value


_COUNTS = ("embedding_length", "feed_forward_length", "block_count", "context_length")
_HEADS = ("attention.head_count", "attention.head_count_kv", "attention.key_length", "rope.dimension_count")
_REALS = ("attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.freq_base_swa", "rope.scaling.factor")
_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")


def _require_numbers(file: GgufFile) -> None:
    """Refuses impossible numbers, and more layers than the file has tensors for."""
    for key in (*_COUNTS, *_HEADS, "attention.sliding_window_pattern", "attention.sliding_window"):
        value = file.architecture_field(key)
        if isinstance(value, list) and key in _HEADS[:2]:
            continue  # a number for each layer; transformers_config refuses that by name
        if value is not None and (type(value) is not int or not 0 < value < 2**31):
            raise ModelError(f"{file.path}: {key} cannot be {value!r:.60}", hint=_DAMAGED)
    for key in (*_REALS, *_CAPS):
        value = file.architecture_field(key)
        if value is not None and (type(value) not in (int, float) or not 0 <= value < 1e30):
            raise ModelError(f"{file.path}: {key} cannot be {value!r:.60}", hint=_DAMAGED)
    blocks = {match[1] for name in file.tensors if (match := re.match(r"blk\.(\d+)\.", name))}
    count = file.require(f"{file.architecture}.block_count")
    if count > len(blocks):
        gap = next(i for i in range(count) if str(i) not in blocks)
        raise ModelError(
            f"{file.path} lacks model.layers.{gap}; its header declares {count} layers", hint=_DAMAGED
        )


def _head_dim(file: GgufFile, hidden: int, heads: int) -> int:
    # Llama's rotary dimension is the whole head; the others state the head's size, or it divides evenly.
    head_dim = file.architecture_field("attention.key_length")
    if head_dim is None and file.architecture == "llama":
        head_dim = file.architecture_field("rope.dimension_count")
    return head_dim or hidden // heads


def _vocab_size(file: GgufFile) -> int:
    if "token_embd.weight" not in file.tensors:
        raise ModelError(f"{file.path} has no token embedding (token_embd.weight)")
    return file.tensors["token_embd.weight"].shape[0]


def _token_ids(file: GgufFile) -> dict[str, int]:
    names = {"bos": "bos", "eos": "eos", "pad": "padding"}
    keys = {f"{ours}_token_id": f"tokenizer.ggml.{theirs}_token_id" for ours, theirs in names.items()}
    return {ours: file.metadata[key] for ours, key in keys.items() if key in file.metadata}


def _rope_parameters(file: GgufFile, theta: float, llama3_factors: list[float] | None) -> dict[str, Any]:
    base: dict[str, Any] = {"rope_theta": theta, "rope_type": "default"}
    if llama3_factors is not None:
        return base | {
            "rope_type": "llama3",
            "factor": _llama3_factor(file, theta, llama3_factors),
            **_LLAMA3,
        }
    kind = file.architecture_field("rope.scaling.type", "none")
    factor = file.architecture_field("rope.scaling.factor", 1.0)
    if kind == "none" or factor in (0.0, 1.0):
        return base
    if kind == "linear":
        return base | {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        original = file.require(f"{file.architecture}.rope.scaling.original_context_length")
        return base | {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    raise ModelError(f"{file.path}: the rotary scaling {kind!r} is not supported")


def _llama3_factor(file: GgufFile, theta: float, factors: list[float]) -> float:
    """The scaling factor behind the stored divisors, which must be Llama 3.1's.

    The header does not hold the constants of the scaling, so only Meta's own can be recognised.
    """
    factor = max(factors)  # of the lowest frequencies, which are divided by the whole factor
    expected = llama3_rope_factors(
        2 * len(factors),
        theta,
        factor=factor,
        low=_LLAMA3["low_freq_factor"],
        high=_LLAMA3["high_freq_factor"],
        original_context=int(_LLAMA3["original_max_position_embeddings"]),
    )
    for i, (stored, wanted) in enumerate(zip(factors, expected, strict=True)):
        if not math.isclose(stored, wanted, rel_tol=1e-3):
            raise ModelError(
                f"{file.path}: its rotary factors are not Llama 3.1's ({i}: {stored}, not {wanted})",
                hint="Use the original safetensors directory.",
            )
    return round(factor, 3)


def _gemma_fields(file: GgufFile, config: dict[str, Any], variant: GemmaVariant) -> dict[str, Any]:
    """The fields that only Gemma's configurations have."""
    layers, head_dim = config["num_hidden_layers"], config["head_dim"]
    pattern = file.architecture_field("attention.sliding_window_pattern", variant.window_period)
    if not isinstance(pattern, int):
        raise ModelError(f"{file.path}: an irregular sliding-window pattern is not supported")
    by_heads = config["hidden_size"] // config["num_attention_heads"]
    fields = {
        "query_pre_attn_scalar": by_heads if layers == variant.layers_of_27b else head_dim,
        "sliding_window": file.require(f"{file.architecture}.attention.sliding_window"),
        "layer_types": [
            "full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(layers)
        ],
    }
    if variant.softcaps:
        return fields | {
            "attn_logit_softcapping": file.architecture_field("attn_logit_softcapping", 50.0),
            "final_logit_softcapping": file.architecture_field("final_logit_softcapping", 30.0),
        }
    local_theta = round_f32(file.architecture_field("rope.freq_base_swa", _GEMMA_LOCAL_THETA))
    return fields | {
        "rope_parameters": {
            "full_attention": config["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": local_theta},
        },
    }
