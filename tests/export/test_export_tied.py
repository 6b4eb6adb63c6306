"""Output weights: tied to the embedding or not, in a model's file and after merging an adapter."""

from __future__ import annotations

import shutil

import pytest
import torch
from exported_models import LlamaCpp, save
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from stillhouse.errors import ModelError
from stillhouse.export import adapter, export_gguf
from stillhouse.models import load_weights, read_gguf

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # of peft, whose warnings of tied weights do not matter here
IDS = torch.arange(5, 30)[None]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Directory -> a tied and an untied Llama."""
    directory = tmp_path_factory.mktemp("models")
    for name, tied in (("tied", True), ("untied", False)):
        save(directory / name, "llama", tie_word_embeddings=tied)
    return directory


def logits_of(model):
    with torch.no_grad():
        return model(IDS).logits


def exported_logits(directory, out):
    (export,) = export_gguf(directory, ["f32"], out / "file.gguf")
    return export, logits_of(load_weights(str(export.path)).model)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_output_weights_of_a_file_whose_configuration_ties_them_are_kept(tmp_path, architecture):
    """transformers uses the file's output weights, whatever its configuration says."""
    model = save(tmp_path / "model", architecture, tie_word_embeddings=True)
    file = tmp_path / "model/model.safetensors"
    generator = torch.Generator().manual_seed(0)
    own = 0.08 * torch.randn(model.lm_head.weight.shape, generator=generator)
    save_file(load_file(file) | {"lm_head.weight": own}, file, {"format": "pt"})
    expected = logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "model"))
    assert (expected - logits_of(model)).abs().max() > 1
    export, logits = exported_logits(tmp_path / "model", tmp_path)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    theirs = LlamaCpp(export.path).logprobs(IDS[0].tolist(), model.config.vocab_size)
    torch.testing.assert_close(theirs, expected[0, -1].log_softmax(-1), rtol=0, atol=0.01)


@pytest.mark.parametrize("stored", [("lm_head",), ("model.embed_tokens", "lm_head")])
def test_one_tensor_is_written_where_both_agree(tmp_path, models, stored):
    directory = shutil.copytree(models / "tied", tmp_path / "model")
    file = directory / "model.safetensors"
    weights = load_file(file)
    embedding = weights.pop("model.embed_tokens.weight")
    save_file(weights | {f"{name}.weight": embedding.clone() for name in stored}, file, {"format": "pt"})
    export, logits = exported_logits(directory, tmp_path)
    assert "output.weight" not in read_gguf(export.path).tensors
    torch.testing.assert_close(logits, logits_of(load_weights(str(models / "tied")).model))


ADAPTERS = {
    "output": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "both": {"target_modules": ["lm_head", "embed_tokens"]},
    "dora": {"target_modules": ["q_proj", "v_proj"], "use_dora": True},
    "rslora": {"target_modules": ["q_proj", "lm_head"], "use_rslora": True},
    "saved output": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saved embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [7, 8, 9]},
    "tied by peft": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
}


@pytest.mark.parametrize(
    ("base", "kind"), [*(("tied", kind) for kind in ADAPTERS), ("untied", "both"), ("untied", "saved output")]
)
def test_an_adapter_computes_the_same_merged(tmp_path, models, base, kind):
    peft = pytest.importorskip("peft")
    weights = load_weights(str(models / base)).model
    config = peft.LoraConfig(r=4, lora_alpha=8, **ADAPTERS[kind])
    adapted = peft.get_peft_model(weights, config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(load_weights(str(models / base)).model, str(tmp_path / "adapter"))
    expected = logits_of(again.eval())
    plain = logits_of(load_weights(str(models / base)).model)
    assert (expected - plain).abs().max() > 0.1
    _, logits = exported_logits(tmp_path / "adapter", tmp_path)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=2e-4)


def test_an_adapter_that_merging_changes_is_refused(tmp_path, models, monkeypatch):
    """Without untying, a change of the output weights would also change the embedding."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False)
    peft.get_peft_model(load_weights(str(models / "tied")).model, config).save_pretrained(
        tmp_path / "adapter"
    )
    monkeypatch.setattr(adapter, "_untie", lambda output: None)
    with pytest.raises(ModelError, match="computes something else"):
        export_gguf(tmp_path / "adapter", ["f32"])
