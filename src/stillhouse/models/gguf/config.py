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
from stillhouse.models.gguf.architectures import ARCHITECTURES, Architecture, named, parameter_name
from stillhouse.models.gguf.file import GgufFile, read_tensor
from stillhouse.models.gguf.rope import llama3_rope_factors

# Llama 3.1 and later stretch low frequencies; the constants are those of Meta's own configurations.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_GEMMA_LOCAL_THETA = 10_000.0
_DAMAGED = "Download the file again, or convert the model again."


ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors of rotary constants, which transformers keeps in its configuration."""


def transformers_name(architecture: Architecture, name: str) -> str | None:
    """The parameter of which tensor ``name`` is a part; None for one that transformers computes itself."""
    if name in ROPE_TENSORS:
        return None
    if (parameter := parameter_name(architecture, name)) is not None:
        return parameter
    raise ModelError(
        f"a {architecture.name} model has no tensor {name!r}",
        hint="The file is of a variant that is not supported; use the original safetensors.",
    )


def architecture_of_file(file: GgufFile) -> Architecture | None:
    """The architecture of ``file``; None where it is not supported."""
    return named(
        file.architecture,
        experts=bool(file.architecture_field("expert_count", 0)),
        windows=bool(file.architecture_field("attention.sliding_window", 0)),
    )


def transformers_config(file: GgufFile) -> dict[str, Any]:
    """transformers' configuration of the model in ``file``.

    Raises:
        ModelError: an architecture, or a variant of one, that is not supported.
    """
    name = file.architecture
    architecture = architecture_of_file(file)
    if architecture is None:
        kind = f"{name} with experts" if file.architecture_field("expert_count", 0) else name
        supported = ", ".join(dict.fromkeys(known.name for known in ARCHITECTURES))
        raise ModelError(
            f"{file.path}: the architecture {kind!r} cannot be loaded for training from GGUF",
            hint=f"Supported: {supported}. Others: use the original safetensors directory.",
        )
    _require_numbers(file, architecture)
    heads = file.require(f"{name}.attention.head_count")
    hidden = file.require(f"{name}.embedding_length")
    if not isinstance(heads, int):
        raise ModelError(f"{file.path}: layers with different numbers of heads are not supported")
    head_dim = _head_dim(file, hidden, heads)
    config = {
        "model_type": architecture.model_types[0],
        "architectures": [architecture.model_class],
        "vocab_size": _vocab_size(file),
        "hidden_size": hidden,
        "intermediate_size": file.architecture_field("feed_forward_length", 0),
        "num_hidden_layers": file.require(f"{name}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.architecture_field("attention.head_count_kv", heads),
        "max_position_embeddings": file.require(f"{name}.context_length"),
        "rms_norm_eps": round_f32(file.require(f"{name}.attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **_token_ids(file),
    }
    if architecture.has_head_dim or head_dim != hidden // heads:
        config["head_dim"] = head_dim
    if architecture.optional_bias:
        config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    config |= {setting: file.require(f"{name}.{key}") for key, setting in architecture.counts.items()}
    config |= {
        setting: round_f32(file.architecture_field(key))
        for key, setting in architecture.factors.items()
        if file.architecture_field(key) is not None
    }
    config |= architecture.required(config)
    config["rope_parameters"] = _rope_parameters(file, architecture, head_dim)
    return config | _mixed_layers(file, architecture, config)


def round_f32(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05 rather than 9.999999747378752e-06."""
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value


_COUNTS = ("embedding_length", "feed_forward_length", "block_count", "context_length")
_HEADS = ("attention.head_count", "attention.head_count_kv", "attention.key_length", "rope.dimension_count")
_WINDOW = "attention.sliding_window"  # 0 means that there is none
_REALS = (
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
)


def _require_numbers(file: GgufFile, architecture: Architecture) -> None:
    """Refuses impossible numbers, and more layers than the file has tensors for."""
    period = [architecture.mixed.key] if architecture.mixed else []
    for key in (*_COUNTS, *_HEADS, _WINDOW, *period, *architecture.counts):
        value = file.architecture_field(key)
        if isinstance(value, list) and key in (*_HEADS[:2], *period):
            continue  # a number for each layer; transformers_config refuses that by name
        if value is not None and (type(value) is not int or not (key != _WINDOW) <= value < 2**31):
            raise ModelError(f"{file.path}: {key} cannot be {value!r:.60}", hint=_DAMAGED)
    for key in (*_REALS, *architecture.factors):
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


def _rope_parameters(file: GgufFile, architecture: Architecture, head_dim: int) -> dict[str, Any]:
    rope = {
        "rope_theta": round_f32(file.architecture_field("rope.freq_base", 10_000.0)),
        "rope_type": "default",
    }
    rotary = file.architecture_field("rope.dimension_count", head_dim)
    if architecture.partial_rotary:
        rope["partial_rotary_factor"] = rotary / head_dim
    kind = file.architecture_field("rope.scaling.type", "none")
    factor = file.architecture_field("rope.scaling.factor", 1.0)
    if "rope_freqs.weight" in file.tensors:
        rope |= _llama3_scaling(file, rope["rope_theta"])
    elif "rope_factors_long.weight" in file.tensors:
        rope |= _longrope_scaling(file)
    elif kind == "linear" and factor not in (0.0, 1.0):
        rope |= {"rope_type": "linear", "factor": factor}
    elif kind == "yarn" and factor not in (0.0, 1.0):
        original = file.require(f"{file.architecture}.rope.scaling.original_context_length")
        rope |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    elif kind not in ("none", "linear", "yarn"):
        raise ModelError(f"{file.path}: the rotary scaling {kind!r} is not supported")
    return rope


def _longrope_scaling(file: GgufFile) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "long_factor": [round_f32(n) for n in read_tensor(file, "rope_factors_long.weight").tolist()],
        "short_factor": [round_f32(n) for n in read_tensor(file, "rope_factors_short.weight").tolist()],
        "original_max_position_embeddings": file.require(
            f"{file.architecture}.rope.scaling.original_context_length"
        ),
        "attention_factor": file.architecture_field("rope.scaling.attn_factor", 1.0),
    }


def _llama3_scaling(file: GgufFile, theta: float) -> dict[str, Any]:
    """Llama 3.1's scaling, whose divisors the file holds.

    The header does not hold the constants of the scaling, so only Meta's own can be recognised.
    """
    factors = read_tensor(file, "rope_freqs.weight").tolist()
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
    return {"rope_type": "llama3", "factor": round(factor, 3), **_LLAMA3}


def _mixed_layers(file: GgufFile, architecture: Architecture, config: dict[str, Any]) -> dict[str, Any]:
    """The kind of every layer, and the rotary parameters of each kind, of models with several kinds."""
    if (mixed := architecture.mixed) is None:
        return {}
    period = file.architecture_field(mixed.key, mixed.period)
    if not isinstance(period, int):
        raise ModelError(f"{file.path}: an irregular order of layers is not supported")
    layers = config["num_hidden_layers"]
    fields: dict[str, Any] = {
        "layer_types": [mixed.other if (i + 1) % period else "full_attention" for i in range(layers)],
    }
    if mixed.other != "sliding_attention":
        return fields
    fields["sliding_window"] = file.require(f"{file.architecture}.attention.sliding_window")
    if architecture.name == "gemma2":  # one set of rotary parameters for all layers
        return fields
    default = _GEMMA_LOCAL_THETA if architecture.name == "gemma3" else config["rope_parameters"]["rope_theta"]
    local_theta = round_f32(file.architecture_field("rope.freq_base_swa", default))
    fields["rope_parameters"] = {
        "full_attention": config["rope_parameters"],
        "sliding_attention": {"rope_type": "default", "rope_theta": local_theta},
    }
    return fields
