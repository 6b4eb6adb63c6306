"""Tiny random decoders of several architectures, for the tests of pruning."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
WINDOW = {
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"] * 2,
}
KINDS = {
    "llama": {"model_type": "llama", "tie_word_embeddings": True, "mlp_bias": True, "attention_bias": True},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": True, **WINDOW},
    "qwen3": {"model_type": "qwen3"},
    "gemma3": {"model_type": "gemma3_text", **WINDOW},
}


def tiny(kind: str, **changes) -> PreTrainedModel:
    """A random model in float32; every vector (biases, norms) is random too."""
    entries = {**SIZES, **KINDS[kind], **changes}
    config = AutoConfig.for_model(entries.pop("model_type"), **entries)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def texts(count: int = 6, length: int = 17, *, seed: int = 0, vocabulary: int = 96) -> list[Tensor]:
    """Random token ids, documents of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocabulary, (length + n,), generator=generator) for n in range(count)]


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """[T, V]"""
    return model(ids[None], use_cache=False).logits[0]


@torch.no_grad()
def silence_layers(model: PreTrainedModel, layers: list[int]) -> None:
    """Makes layers pass their input on unchanged."""
    for layer in layers:
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            linear = model.model.layers[layer].get_submodule(name)
            linear.weight.zero_()
            if linear.bias is not None:
                linear.bias.zero_()
