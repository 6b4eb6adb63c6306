"""Exported weights against the model they came from: read back by our loader, and run by llama.cpp."""

from __future__ import annotations

import pytest
import torch
from exported_models import LlamaCpp, byte_level, save, sentencepiece

from stillhouse.errors import ModelError
from stillhouse.export import export_gguf
from stillhouse.models import load_weights

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
}
CASES = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, wide heads, biases": ("llama", {"head_dim": 32, "attention_bias": True}),
    "llama, linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "llama, yarn": ("llama", {"rope_parameters": YARN}),
    "llama, llama3": ("llama", {"rope_parameters": LLAMA3, "max_position_embeddings": 16384}),
    "llama, llama3 of a short context": (
        "llama",
        {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 32}},
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2, untied": ("qwen2", {"tie_word_embeddings": False}),
    "qwen3": ("qwen3", {}),
    "gemma2": ("gemma2", {}),
    "gemma3": ("gemma3", {}),
    "gemma3, other windows": (
        "gemma3",
        {"layer_types": (["sliding_attention"] * 2 + ["full_attention"]) * 2},
    ),
    "gemma3, rotary": ("gemma3", {"rope_parameters": GEMMA_ROPE}),
}
OURS_CANNOT_READ = {"llama, llama3 of a short context"}  # the loader knows Llama 3.1's own constants only


def ids_of(model, count=40):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, model.config.vocab_size, (1, count), generator=generator)


@pytest.mark.parametrize("case", CASES)
def test_the_file_computes_what_the_model_computes(tmp_path, case):
    architecture, changes = CASES[case]
    tokenizer = sentencepiece(prefix=False) if architecture.startswith("gemma") else byte_level()
    if "layer_types" in changes:
        changes = {**changes, "num_hidden_layers": len(changes["layer_types"])}
    model = save(tmp_path / "model", architecture, tokenizer, **changes)
    (export,) = export_gguf(tmp_path / "model", ["f32"])
    ids = ids_of(model)
    with torch.no_grad():
        expected = model(ids).logits
    if case not in OURS_CANNOT_READ:
        loaded = load_weights(str(export.path))
        with torch.no_grad():
            logits = loaded.model(ids).logits
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        assert loaded.model.config.tie_word_embeddings == model.config.tie_word_embeddings

    llama = LlamaCpp(export.path)
    for length in (1, 7, 40):  # Gemma's window is 8 tokens
        wanted = expected[0, length - 1].log_softmax(-1)
        theirs = llama.logprobs(ids[0, :length].tolist(), model.config.vocab_size)
        # llama.cpp looks Gemma's GELU up in a table of float16.
        torch.testing.assert_close(theirs, wanted, rtol=0, atol=0.1 if "gemma" in case else 0.01)
    written = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    continuation = llama.greedy(ids[0].tolist(), 12, model.config.vocab_size)
    assert continuation == written[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_float32_is_bit_exact(tmp_path, architecture):
    model = save(tmp_path / "model", architecture)
    (export,) = export_gguf(tmp_path / "model", ["f32"])
    loaded = load_weights(str(export.path)).model.state_dict()
    original = model.state_dict()
    assert loaded.keys() == original.keys()
    assert [name for name in original if not torch.equal(original[name], loaded[name])] == []


def test_bfloat16_students_lose_nothing_in_bf16(tmp_path):
    model = save(tmp_path / "model", "llama").bfloat16()
    model.save_pretrained(tmp_path / "model")
    (export,) = export_gguf(tmp_path / "model", ["bf16"])
    loaded = load_weights(str(export.path)).model.state_dict()
    assert all(torch.equal(value.float(), loaded[name]) for name, value in model.state_dict().items())


REFUSED = {
    "mlp_bias": ("llama", {"mlp_bias": True}),
    "rope_type": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    "activation": ("llama", {"hidden_act": "gelu"}),
    "attention_bias": ("qwen3", {"attention_bias": True}),
    "use_sliding_window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
    ),
    "sliding_window": ("mistral", {"sliding_window": 8}),
    "query_pre_attn_scalar": ("gemma3", {"query_pre_attn_scalar": 7}),
    "final_logit_softcapping": ("gemma3", {"final_logit_softcapping": 30.0}),
    "regular order": ("gemma3", {"layer_types": ["full_attention", *["sliding_attention"] * 6]}),
    "attention_factor": ("llama", {"rope_parameters": {**YARN, "attention_factor": 2.0}}),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_llama_cpp_would_compute_otherwise_is_refused_by_name(tmp_path, what):
    architecture, changes = REFUSED[what]
    save(tmp_path / "model", architecture, **changes)
    with pytest.raises(ModelError, match=what):
        export_gguf(tmp_path / "model", ["f32"])
    assert not (tmp_path / "model" / "gguf").exists()
