"""Tiny GGUF files for tests, written with llama.cpp's own writer as its converter would write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6
BYTES = [chr(n) for n in [*range(33, 127), *range(161, 173), *range(174, 256)]]
BYTES += [chr(256 + n) for n in range(256 - len(BYTES))]  # GPT-2's byte alphabet: the other 68, in order
MERGES = [
    "Ġ t",
    "h e",
    "Ġt he",
    "i n",
    "e r",
    "1 2",
    "12 3",
    "Ċ Ċ",
    "Ġ Ġ",
    "H i",
    "' s",
    "Ã ©",
    "o u",
    "y ou",
]


def vocabulary(added: dict[str, int] | None = None, padding: int = 0) -> tuple[list[str], list[int]]:
    """Tokens and their types: bytes, merged tokens, then the added ones, then llama.cpp's filler."""
    merged = [merge.replace(" ", "") for merge in MERGES]
    added = {"<|im_start|>": CONTROL, "<|im_end|>": CONTROL} if added is None else added
    tokens = [*BYTES, *merged, *added]
    types = [NORMAL] * (len(BYTES) + len(merged)) + list(added.values())
    for _ in range(padding):
        tokens.append(f"[PAD{len(tokens)}]")
        types.append(UNUSED)
    return tokens, types


def write_gguf(
    path: Path,
    *,
    tokens: list[str],
    types: list[int],
    pre: str = "smollm",
    special: dict[str, int] | None = None,
    template: str | None = None,
    model: Any = None,
    architecture: str = "llama",
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    merges: list[str] | None = None,
    extra: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """A GGUF file with this header and the weights of ``model``, or one layer of zeros."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name("Tiny")
    writer.add_license("apache-2.0")
    if model is None:
        _zeros(writer, architecture, len(tokens))
    else:
        _weights(writer, architecture, model, quantization)
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(MERGES if merges is None else merges)
    for role, number in (special or {}).items():
        writer.add_uint32(f"tokenizer.ggml.{role}_token_id", number)
    if template is not None:
        writer.add_chat_template(template)
    for key, value in (extra or {}).items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _zeros(writer: gguf.GGUFWriter, architecture: str, vocab_size: int) -> None:
    _sizes(writer, architecture, 32, 64, 1, 4, 2, 8, 128)
    width = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
    width |= {
        "ffn_gate": (64, 32),
        "ffn_up": (64, 32),
        "ffn_down": (32, 64),
        "attn_norm": (32,),
        "ffn_norm": (32,),
    }
    writer.add_tensor("token_embd.weight", np.zeros((vocab_size, 32), np.float32))
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    for name, shape in width.items():
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros(shape, np.float32))


def _sizes(
    writer: gguf.GGUFWriter,
    architecture: str,
    hidden: int,
    wide: int,
    layers: int,
    heads: int,
    kv: int,
    dim: int,
    context: int,
) -> None:
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(wide)
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_context_length(context)
    writer.add_layer_norm_rms_eps(1e-6)
    if architecture in ("qwen3", "gemma3"):
        writer.add_key_length(dim)
        writer.add_value_length(dim)
    else:
        writer.add_rope_dimension_count(dim)


def _weights(
    writer: gguf.GGUFWriter, architecture: str, model: Any, quantization: gguf.GGMLQuantizationType
) -> None:
    config = model.config
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    hidden, wide, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    _sizes(writer, architecture, hidden, wide, layers, heads, kv, dim, config.max_position_embeddings)
    rope = config.rope_parameters
    writer.add_rope_freq_base(float(rope.get("full_attention", rope)["rope_theta"]))
    if architecture == "gemma3":
        writer.add_sliding_window(config.sliding_window)
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = value.float().numpy()
        if architecture == "llama" and ("q_proj.weight" in name or "k_proj.weight" in name):
            array = permuted(array, heads if "q_proj" in name else kv)
        if architecture == "gemma3" and "norm" in name:
            array = array + 1
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        kind = quantization if array.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(target, gguf.quantize(np.ascontiguousarray(array), kind), raw_dtype=kind)


def permuted(weight_OI: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of Llama's query and key rows: the two halves of each head interleaved."""
    out = []
    for head in np.split(weight_OI, heads):
        first, second = np.split(head, 2)
        out += [row for pair in zip(first, second, strict=True) for row in pair]
    return np.stack(out)


SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.2,
}
_TIED = {"tie_word_embeddings": True}
_UNTIED = {"tie_word_embeddings": False}
_WIDE_HEADS = {"head_dim": 32}  # not hidden / heads
_GEMMA = _TIED | _WIDE_HEADS | {"num_hidden_layers": 7, "sliding_window": 8, "query_pre_attn_scalar": 32}
_EXPERTS = _UNTIED | {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
OWN_SIZES: dict[str, dict[str, Any]] = {
    "llama": _UNTIED,
    "mistral": _UNTIED | {"sliding_window": None},
    "mixtral": _UNTIED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": _TIED,
    "qwen2_moe": _EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 48},
    "qwen3": _TIED | _WIDE_HEADS,
    "qwen3_moe": _EXPERTS | _WIDE_HEADS | {"num_experts": 4, "norm_topk_prob": True},
    "qwen3_5_text": _TIED
    | _WIDE_HEADS
    | {
        "num_hidden_layers": 4,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
    },
    "smollm3": _TIED | {"num_hidden_layers": 5},
    "phi3": _UNTIED,
    "olmo2": _UNTIED,
    "olmo3": _UNTIED | {"num_hidden_layers": 5, "sliding_window": 8},
    "granite": _TIED
    | {
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.6,
        "attention_multiplier": 0.2,
    },
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gpt2": {},
}
"""transformers' `model_type` -> the sizes of its tiny model, besides :data:`SIZES`."""


def tiny_model(model_type: str, vocab_size: int, **changes: Any) -> Any:
    """A random transformers model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type = {"gemma3": "gemma3_text"}.get(model_type, model_type)
    torch.manual_seed(0)
    settings = SIZES | OWN_SIZES[model_type] | {"vocab_size": vocab_size} | changes
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings)).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, 0.5, 0.1)  # not the ones and zeros of a fresh model
    return model
