"""Exported weights against the model they came from: read back by our loader, and run by llama.cpp."""

from __future__ import annotations

import json

import pytest
import torch
from exported_models import LlamaCpp, byte_level, save, sentencepiece

from stillhouse.errors import ModelError
from stillhouse.export import export_gguf
from stillhouse.models import load_weights, read_gguf, slot_context

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
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.4, 1.5, 1.6, 1.8, 2.0],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 16.0],
    "original_max_position_embeddings": 512,
}
LONG = {"rope_parameters": LONGROPE, "max_position_embeddings": 2048}
PHI4_MINI = {
    "rope_parameters": {
        **LONGROPE,
        "short_factor": LONGROPE["short_factor"][:6],
        "long_factor": LONGROPE["long_factor"][:6],
        "partial_rotary_factor": 0.75,
    },
    "max_position_embeddings": 2048,
    "original_max_position_embeddings": 512,
    "sliding_window": 4096,
}
OLMO_YARN = {
    "full_attention": YARN,
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
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
    "llama, longrope": ("llama", LONG),
    "mistral": ("mistral", {}),
    "mixtral": ("mixtral", {}),
    "qwen2": ("qwen2", {}),
    "qwen2, untied": ("qwen2", {"tie_word_embeddings": False}),
    "qwen2_moe": ("qwen2_moe", {}),
    "qwen2_moe, tied": ("qwen2_moe", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3_moe", {}),
    "qwen3.5": ("qwen3_5_text", {}),
    "qwen3.5, one value head for each key": (
        "qwen3_5_text",
        {"linear_num_key_heads": 4, "tie_word_embeddings": False},
    ),
    "smollm3": ("smollm3", {}),
    "phi3": ("phi3", {}),
    "phi4-mini": ("phi3", PHI4_MINI),
    "olmo2": ("olmo2", {}),
    "olmo3, yarn": ("olmo3", {"rope_parameters": OLMO_YARN}),
    "olmo3, other windows": (
        "olmo3",
        {"layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    "granite": ("granite", {}),
    "granite, biases": ("granite", {"attention_bias": True}),
    "gemma2": ("gemma2", {}),
    "gemma2, other windows": (
        "gemma2",
        {"layer_types": (["sliding_attention"] * 2 + ["full_attention"]) * 2},
    ),
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
        # llama.cpp requires output weights for some architectures, also where they are tied.
        tied = model.config.tie_word_embeddings and case != "qwen2_moe, tied"
        assert loaded.model.config.tie_word_embeddings == tied

    llama = LlamaCpp(export.path)
    for length in (1, 7, 40):  # Gemma's window is 8 tokens
        wanted = expected[0, length - 1].log_softmax(-1)
        theirs = llama.logprobs(ids[0, :length].tolist(), model.config.vocab_size)
        # llama.cpp looks Gemma's GELU up in a table of float16.
        torch.testing.assert_close(theirs, wanted, rtol=0, atol=0.1 if "gemma" in case else 0.01)
    written = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    continuation = llama.greedy(ids[0].tolist(), 4, model.config.vocab_size)
    assert continuation == written[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("case", ["llama, longrope", "phi4-mini"])
def test_a_long_context_takes_the_factors_of_long_texts(tmp_path, case):
    """transformers decides by the text's length, llama.cpp by the context that it is started with."""
    architecture, changes = CASES[case]
    model = save(tmp_path / "model", architecture, byte_level(), num_hidden_layers=1, **changes)
    (export,) = export_gguf(tmp_path / "model", ["f32"])
    assert read_gguf(export.path).architecture_field("context_length") == 2048
    ids = ids_of(model, 600)
    with torch.no_grad():
        wanted = model(ids).logits[0, -1].log_softmax(-1)
        rotary = model.model.rotary_emb
        rotary.long_inv_freq = rotary.original_inv_freq.clone()
        short = model(ids).logits[0, -1].log_softmax(-1)
    theirs = LlamaCpp(export.path, context=768).logprobs(ids[0].tolist(), model.config.vocab_size)
    torch.testing.assert_close(theirs, wanted, rtol=0, atol=0.01)
    assert (wanted - short).abs().max() > 0.05  # the factors matter
    # `still serve` starts it with the original context, so that short conversations are right.
    assert slot_context(read_gguf(export.path)) == 512


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("mistral", {"sliding_window": 24}),
        ("phi3", {"sliding_window": 24}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 0}),
    ],
)
def test_the_context_ends_where_a_window_begins_that_llama_cpp_has_not(tmp_path, architecture, changes):
    model = save(tmp_path / "model", architecture, **changes)
    (export,) = export_gguf(tmp_path / "model", ["f32"])
    assert (export.window, read_gguf(export.path).architecture_field("context_length")) == (24, 24)
    assert "PARAMETER num_ctx 24\n" in export.modelfile.read_text()
    ids = ids_of(model)
    with torch.no_grad():
        expected = model(ids).logits[0].log_softmax(-1)
    llama = LlamaCpp(export.path)
    theirs = llama.logprobs(ids[0, :23].tolist(), model.config.vocab_size)
    torch.testing.assert_close(theirs, expected[22], rtol=0, atol=0.01)
    with pytest.raises(KeyError, match="choices"):  # llama.cpp refuses what is longer
        llama.logprobs(ids[0].tolist(), model.config.vocab_size)


@pytest.mark.parametrize("case", ["llama, linear", "llama, yarn"])
def test_rotations_as_transformers_4_wrote_them(tmp_path, case):
    architecture, changes = CASES[case]
    save(tmp_path / "model", architecture, **changes)
    (new,) = export_gguf(tmp_path / "model", ["f32"], tmp_path / "new.gguf")
    file = tmp_path / "model/config.json"
    config = json.loads(file.read_text())
    rotation = config.pop("rope_parameters")
    theta = rotation.pop("rope_theta")
    old_form = {"rope_theta": theta, "rope_scaling": {"type": rotation.pop("rope_type"), **rotation}}
    file.write_text(json.dumps(config | old_form))
    (old,) = export_gguf(tmp_path / "model", ["f32"], tmp_path / "old.gguf")
    rope = [
        {key: value for key, value in read_gguf(export.path).metadata.items() if ".rope." in key}
        for export in (new, old)
    ]
    assert rope[0] == rope[1]
    assert any("scaling" in key for key in rope[0])


def test_original_checkpoints_of_experts_are_read(tmp_path):
    """One tensor for each expert and part, as Mixtral's files have them, in several files."""
    model = save(tmp_path / "model", "mixtral")
    model.save_pretrained(tmp_path / "model", max_shard_size="100KB")
    (tmp_path / "model/model.safetensors").unlink()
    (export,) = export_gguf(tmp_path / "model", ["f32"])
    loaded = load_weights(str(export.path)).model.state_dict()
    assert [name for name, value in model.state_dict().items() if not torch.equal(value, loaded[name])] == []


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
    "hidden_act": ("llama", {"hidden_act": "gelu"}),
    "attention_bias": ("qwen3", {"attention_bias": True}),
    "partial_rotary_factor": (
        "llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ),
    "query_pre_attn_scalar": ("gemma3", {"query_pre_attn_scalar": 7}),
    "final_logit_softcapping": ("gemma3", {"final_logit_softcapping": 30.0}),
    "regular order": ("gemma3", {"layer_types": ["full_attention", *["sliding_attention"] * 6]}),
    "attention_factor": ("llama", {"rope_parameters": {**YARN, "attention_factor": 2.0}}),
    "no_rope_layers": ("smollm3", {"no_rope_layers": [1, 0, 1, 1, 1]}),
    "norm_topk_prob": ("qwen3_moe", {"norm_topk_prob": False}),
    "decoder_sparse_step": ("qwen3_moe", {"decoder_sparse_step": 2}),
    "linear_value_head_dim": ("qwen3_5_text", {"linear_value_head_dim": 16}),
    "attention_bias True": ("smollm3", {"attention_bias": True}),
    "any layer of full attention": ("qwen3_5_text", {"num_hidden_layers": 3}),
    "mrope_section": ("qwen3_5_text", {"head_dim": 24}),
    "'gpt2' cannot": ("gpt2", {}),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_llama_cpp_would_compute_otherwise_is_refused_by_name(tmp_path, what):
    architecture, changes = REFUSED[what]
    save(tmp_path / "model", architecture, **changes)
    with pytest.raises(ModelError, match=what) as caught:
        export_gguf(tmp_path / "model", ["f32"])
    # `still serve` refuses some of these too, so the hint must not send the user there.
    assert "still serve" not in (caught.value.hint or "")
    assert not (tmp_path / "model" / "gguf").exists()
