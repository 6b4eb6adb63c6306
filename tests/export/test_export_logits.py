"""The comparison by log-probabilities: what it computes, and that it finds what is wrong with a file."""

from __future__ import annotations

import sys

import pytest
import torch
from exported_models import save, sentencepiece

from stillhouse.errors import IntegrityError
from stillhouse.export import check_logits, export_gguf, header, quantise, write
from stillhouse.export.streamed_model import streamed_logprobs

IDS = list(range(3, 30))


@pytest.mark.parametrize("architecture", ["gemma2", "qwen3_5_text", "qwen2_moe"])
def test_a_model_read_layer_by_layer_computes_the_same(tmp_path, architecture):
    tokenizer = sentencepiece(prefix=False) if architecture == "gemma2" else None
    model = save(tmp_path / "model", architecture, tokenizer)
    state, read = model.state_dict(), []

    def weights(key):
        read.append(key)
        return state[key]

    logprobs = streamed_logprobs(model.config, weights, IDS)
    # Other attention would leave out Gemma 2's cap.
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits[0].log_softmax(-1)
    torch.testing.assert_close(logprobs, expected, rtol=1e-5, atol=1e-5)
    assert sorted(read) == sorted(state)  # each once


def test_the_divergence_of_the_likeliest_tokens_bounds_the_whole():
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 500, generator=generator).log_softmax(-1)
    whole = float((p.exp() * (p - q)).sum())
    top = {int(number): float(q[number]) for number in q.topk(64).indices}
    assert 0 < check_logits._divergence_of_top(p, top) <= whole
    everything = dict(enumerate(q.tolist()))
    assert check_logits._divergence_of_top(p, everything) == pytest.approx(whole, abs=1e-5)


def wrong_theta(monkeypatch):
    add = header.add_rope

    def changed(writer, config, architecture):
        add(writer, config, architecture)
        writer.kv_data[0][f"{architecture.name}.rope.freq_base"].value = 500.0

    monkeypatch.setattr(header, "add_rope", changed)


def wrong_epsilon(monkeypatch):
    add = write.add_header

    def changed(writer, config):
        add(writer, config)
        writer.kv_data[0]["llama.attention.layer_norm_rms_epsilon"].value = 0.1

    monkeypatch.setattr(write, "add_header", changed)


def swapped_tensors(monkeypatch):
    exported = write.exported_tensors

    def changed(source, architecture):
        tensors = {tensor.name: tensor for tensor in exported(source, architecture)}
        gate, up = tensors["blk.1.ffn_gate.weight"], tensors["blk.1.ffn_up.weight"]
        tensors["blk.1.ffn_gate.weight"] = write.ExportedTensor(gate.name, gate.shape, up.read)
        return iter(tensors.values())

    monkeypatch.setattr(write, "exported_tensors", changed)


def coarse_values(monkeypatch):
    stored = quantise.quantise
    monkeypatch.setattr(write, "quantise", lambda values, kind, name: stored(values * 0.99, kind, name))


@pytest.mark.parametrize(
    ("damage", "kind", "what"),
    [
        (wrong_theta, "f32", "something else"),
        (wrong_theta, "q8_0", "something else"),
        (wrong_epsilon, "q8_0", "something else"),
        (swapped_tensors, "q8_0", r"blk\.1\.ffn_gate"),
        (coarse_values, "f16", "not written as it should"),
    ],
)
def test_a_file_that_computes_something_else_is_not_kept(tmp_path, monkeypatch, damage, kind, what):
    pytest.importorskip("xllamacpp")
    save(tmp_path / "model", "llama", initializer_range=0.4)
    damage(monkeypatch)
    with pytest.raises(IntegrityError, match=what):
        export_gguf(tmp_path / "model", [kind])
    assert list((tmp_path / "model" / "gguf").iterdir()) == []


def test_without_llama_cpp_the_weights_are_compared(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    monkeypatch.setattr(quantise, "_ggml", lambda: None)
    save(tmp_path / "model", "llama")
    (export,) = export_gguf(tmp_path / "model", ["q4_0"])
    assert export.comparison.runtime_divergence is None
    assert export.comparison.divergence > 0.001
    swapped_tensors(monkeypatch)
    with pytest.raises(IntegrityError, match=r"blk\.1\.ffn_gate"):
        export_gguf(tmp_path / "model", ["q4_0"], tmp_path / "other")
