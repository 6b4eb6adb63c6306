"""Adapters: they alone train, they merge exactly, and nothing of peft is left."""

from __future__ import annotations

import sys

import pytest
import torch
from tiny_decoders import logits, texts, tiny

from stillhouse.distill.students.lora import has_adapters, merged, prepare_lora
from stillhouse.errors import MissingExtraError, RecipeError
from stillhouse.recipe import Lora

SETTINGS = Lora(rank=3, alpha=7.0, targets=("q_proj", "down_proj"))


def adapted(seed: int = 0, settings: Lora = SETTINGS):
    return prepare_lora(tiny("llama"), settings, seed=seed)


@torch.no_grad()
def learn_something(model):
    """Moves the adapters' second halves, which start at zero, off it."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.2)


def test_without_settings_the_model_is_returned_as_it_is():
    model = tiny("llama")
    assert prepare_lora(model, None, seed=0) is model
    assert not has_adapters(model)


def test_an_untrained_adapter_changes_nothing():
    ids = texts(1)[0]
    assert torch.equal(logits(adapted(), ids), logits(tiny("llama"), ids))


def test_only_adapters_train():
    model = adapted()
    assert has_adapters(model)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 6 * 2 * 2  # layers, targets, halves
    assert all("lora_" in name for name in trained)
    model(texts(1)[0][None], labels=texts(1)[0][None]).loss.backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == set(
        trained
    )


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@torch.no_grad()
def test_merged_weights_are_the_base_plus_the_scaled_product(kind):
    base = tiny(kind)
    model = prepare_lora(tiny(kind), SETTINGS, seed=0)
    learn_something(model)
    parts = dict(model.named_parameters())
    plain = merged(model).state_dict()
    assert plain.keys() == base.state_dict().keys()
    for name, value in base.state_dict().items():
        stem = name.removesuffix(".weight")
        if any(stem.endswith(target) for target in SETTINGS.targets) and name.endswith(".weight"):
            up, down = parts[f"{stem}.lora_B.default.weight"], parts[f"{stem}.lora_A.default.weight"]
            value = value + 7.0 / 3 * up @ down
        torch.testing.assert_close(plain[name], value, rtol=1e-5, atol=1e-6)


def test_merged_model_says_what_the_adapted_one_says_and_leaves_it_alone():
    model = adapted()
    learn_something(model)
    ids = texts(1)[0]
    before = logits(model, ids)
    plain = merged(model)
    torch.testing.assert_close(logits(plain, ids), before, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(model, ids), before)
    assert not has_adapters(plain)
    assert not any("lora" in type(module).__module__ for module in plain.modules())
    assert all(parameter.requires_grad for parameter in plain.parameters())


def test_the_seed_draws_the_adapters_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = adapted(seed=1).state_dict()
    assert torch.equal(torch.rand(1), expected)
    again, other = adapted(seed=1).state_dict(), adapted(seed=2).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_an_unknown_target_is_refused_with_the_nearest():
    with pytest.raises(RecipeError, match="no linear layer named 'qproj'") as caught:
        adapted(settings=Lora(targets=("qproj",)))
    assert caught.value.hint == "Did you mean `q_proj`?"


def test_the_output_layer_is_refused_since_the_losses_read_its_weight_alone():
    with pytest.raises(RecipeError, match="no linear layer named 'lm_head'") as caught:
        adapted(settings=Lora(targets=("q_proj", "lm_head")))
    assert "lm_head" not in (caught.value.hint or "")


def test_without_peft_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError) as caught:
        adapted()
    assert "stillhouse[lora]" in (caught.value.hint or "")
