"""A GGUF header as a transformers configuration, and the names of its tensors there.

Dense llama (Mistral included), qwen2, qwen3, gemma2 and gemma3 (text). Everything else is refused by
name rather than loaded half right. Facts from llama.cpp's `convert_hf_to_gguf.py`,
`llama-model.cpp` and the models' own configuration files.
"""

from __future__ import annotations

import math
import re
import struct
from typing import Any

from stillhouse.errors import ModelError
from stillhouse.models.gguf.file import GgufFile

ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma2": ("gemma2", "Gemma2ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
}

_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
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
_GEMMA_LAYER = _LAYER | {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_TENSOR = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")

# Llama 3.1 and later stretch low frequencies; the constants are those of Meta's own configurations.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_DAMAGED = "Download the file again, or convert the model again."
_GEMMA_LOCAL_THETA = 10_000.0
_GEMMA_LAYERS = {"gemma2": (2, 46), "gemma3": (6, 62)}  # one in so many sees everything; layers of the 27B


def transformers_name(architecture: str, name: str) -> str | None:
    """The parameter that tensor ``name`` fills; None for one that transformers computes itself."""
    if name == "rope_freqs.weight":
        return None
    match = _TENSOR.fullmatch(name)
    if match:
        layer, part, suffix = match.groups()
        table = _WHOLE if layer is None else _GEMMA_LAYER if architecture.startswith("gemma") else _LAYER
        if part in table:
            return (
                f"{table[part]}.{suffix}" if layer is None else f"model.layers.{layer}.{table[part]}.{suffix}"
            )
    raise ModelError(
        f"the tensor {name!r} has no place in a {architecture} model",
        hint="The file is of a variant that is not supported; use the original safetensors.",
    )


def transformers_config(file: GgufFile, *, llama3_factors: list[float] | None = None) -> dict[str, Any]:
    """transformers' configuration of the model in ``file``.

    Args:
        llama3_factors: the values of the tensor `rope_freqs.weight`, where the file has one.

    Raises:
        ModelError: an architecture, or a variant of one, that is not supported.
    """
    architecture = file.architecture
    if architecture not in ARCHITECTURES or file.architecture_field("expert_count", 0):
        kind = f"{architecture} with experts" if architecture in ARCHITECTURES else architecture
        raise ModelError(
            f"{file.path}: the architecture {kind!r} cannot be loaded for training from GGUF",
            hint=f"Supported: {', '.join(ARCHITECTURES)}. Others: use the original safetensors directory.",
        )
    model_type, class_name = ARCHITECTURES[architecture]
    _require_numbers(file)
    heads = file.require(f"{architecture}.attention.head_count")
    hidden = file.require(f"{architecture}.embedding_length")
    if not isinstance(heads, int):
        raise ModelError(f"{file.path}: layers with different numbers of heads are not supported")
    # Llama's rotary dimension is the whole head; the others state the head's size, or it divides evenly.
    head_dim = file.architecture_field("attention.key_length")
    if head_dim is None:
        head_dim = (
            file.architecture_field("rope.dimension_count") if architecture == "llama" else None
        ) or hidden // heads
    theta = round_f32(file.architecture_field("rope.freq_base", 10_000.0))
    config = {
        "model_type": model_type,
        "architectures": [class_name],
        "vocab_size": _vocab_size(file),
        "hidden_size": hidden,
        "intermediate_size": file.require(f"{architecture}.feed_forward_length"),
        "num_hidden_layers": file.require(f"{architecture}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.architecture_field("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": file.require(f"{architecture}.context_length"),
        "rms_norm_eps": round_f32(file.require(f"{architecture}.attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": _rope(file, theta, llama3_factors),
        **_token_ids(file),
    }
    if architecture == "qwen2" and head_dim == hidden // heads:
        del config["head_dim"]  # not a field of that configuration
    if architecture == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    if architecture == "qwen3":
        config["attention_bias"] = False
    if architecture.startswith("gemma"):
        config |= _gemma(file, config)
    return config


def unpermute_rows(heads: int, rows: int) -> list[int]:
    """Row order that undoes llama.cpp's rearrangement of Llama's query and key weights.

    transformers rotates the two halves of a head, GGUF's llama neighbouring pairs; the converter
    moves row ``half * dim/2 + i`` of each head to ``2 * i + half``. Row r of the result is row
    ``order[r]`` of the file.
    """
    dim = rows // heads
    return [head * dim + 2 * i + half for head in range(heads) for half in range(2) for i in range(dim // 2)]


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
    """Refuses numbers that are none, and a count of layers that the file's tensors belie."""
    for key in (*_COUNTS, *_HEADS, "attention.sliding_window_pattern", "attention.sliding_window"):
        value = file.architecture_field(key)
        if isinstance(value, list) and key in _HEADS[:2]:
            continue  # differs from layer to layer; refused by name below
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
        raise ModelError(f"{file.path} lacks model.layers.{gap}; it says that it has {count}", hint=_DAMAGED)


def _vocab_size(file: GgufFile) -> int:
    if "token_embd.weight" not in file.tensors:
        raise ModelError(f"{file.path} has no token embedding (token_embd.weight)")
    return file.tensors["token_embd.weight"].shape[0]


def _token_ids(file: GgufFile) -> dict[str, int]:
    names = {"bos": "bos", "eos": "eos", "pad": "padding"}
    keys = {f"{ours}_token_id": f"tokenizer.ggml.{theirs}_token_id" for ours, theirs in names.items()}
    return {ours: file.metadata[key] for ours, key in keys.items() if key in file.metadata}


def _rope(file: GgufFile, theta: float, llama3_factors: list[float] | None) -> dict[str, Any]:
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
    """The scaling factor behind the stored per-frequency factors, checked against Llama 3.1's formula."""
    factor, size = max(factors), 2 * len(factors)
    low_wave = _LLAMA3["original_max_position_embeddings"] / _LLAMA3["low_freq_factor"]
    high_wave = _LLAMA3["original_max_position_embeddings"] / _LLAMA3["high_freq_factor"]
    for i, stored in enumerate(factors):
        wave = 2 * math.pi * theta ** (2 * i / size)
        smooth = (low_wave / wave - 1) / (low_wave / high_wave - 1)
        expected = (
            1.0 if wave < high_wave else factor if wave > low_wave else 1 / ((1 - smooth) / factor + smooth)
        )
        if not math.isclose(stored, expected, rel_tol=1e-3):
            raise ModelError(
                f"{file.path}: its rotary factors are not Llama 3.1's ({i}: {stored}, not {expected})",
                hint="Use the original safetensors directory.",
            )
    return round(factor, 3)


def _gemma(file: GgufFile, config: dict[str, Any]) -> dict[str, Any]:
    layers, head_dim = config["num_hidden_layers"], config["head_dim"]
    usual, layers_of_27b = _GEMMA_LAYERS[file.architecture]
    pattern = file.architecture_field("attention.sliding_window_pattern", usual)
    if not isinstance(pattern, int):
        raise ModelError(f"{file.path}: an irregular sliding-window pattern is not supported")
    # The 27B model alone scales attention by hidden_size / heads (llama.cpp, hyper-parameters of both).
    by_heads = config["hidden_size"] // config["num_attention_heads"]
    found = {
        "query_pre_attn_scalar": by_heads if layers == layers_of_27b else head_dim,
        "sliding_window": file.require(f"{file.architecture}.attention.sliding_window"),
        "layer_types": [
            "full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(layers)
        ],
    }
    if file.architecture == "gemma2":
        return found | {
            "attn_logit_softcapping": file.architecture_field("attn_logit_softcapping", 50.0),
            "final_logit_softcapping": file.architecture_field("final_logit_softcapping", 30.0),
        }
    local = round_f32(file.architecture_field("rope.freq_base_swa", _GEMMA_LOCAL_THETA))
    return found | {
        "rope_parameters": {
            "full_attention": config["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
    }
