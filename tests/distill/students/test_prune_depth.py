"""Depth pruning against the parent with the same layers silenced."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from tiny_decoders import KINDS, logits, silence_layers, texts, tiny
from torch import nn

from stillhouse.distill.students.importance import (
    block_influence,
    massive_activation_layers,
    record_residual_stream,
)
from stillhouse.distill.students.prune_depth import check_keep, most_influence, prune_depth, removed_runs
from stillhouse.errors import ModelError, RecipeError


@pytest.mark.parametrize("kind", KINDS)
def test_pruned_model_is_the_parent_with_those_layers_silent(kind):
    parent = tiny(kind)
    keep = [0, 2, 3, 5]
    pruned = prune_depth(parent, keep)
    assert len(pruned.model.layers) == pruned.config.num_hidden_layers == 4
    silence_layers(parent, [1, 4])
    for ids in texts():
        torch.testing.assert_close(logits(pruned, ids), logits(parent, ids), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_pruned_model_generates_alike_with_and_without_a_cache(kind):
    pruned = prune_depth(tiny(kind), [0, 2, 5])
    prompt = texts(1)[0][None]
    with_cache, without = (
        pruned.generate(prompt, max_new_tokens=12, do_sample=False, use_cache=use, pad_token_id=0)
        for use in (True, False)
    )
    assert with_cache.tolist() == without.tolist()


def test_pruning_leaves_the_parent_alone():
    parent = tiny("llama")
    before = {name: value.clone() for name, value in parent.state_dict().items()}
    pruned = prune_depth(parent, [0, 1])
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.zero_()
    assert parent.config.num_hidden_layers == 6
    assert all(torch.equal(value, before[name]) for name, value in parent.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_block_influence_is_what_transformers_hidden_states_say(kind):
    """Transformers normalises the last hidden state, so its final norm is taken out."""
    model = tiny(kind)
    sample = texts()
    measured = block_influence(record_residual_stream(model, sample).hidden_ND)
    model.model.norm = nn.Identity()
    cosines: list[list[float]] = [[] for _ in range(6)]
    for ids in sample:
        with torch.no_grad():
            states = model.model(ids[None], output_hidden_states=True).hidden_states
        for layer in range(6):
            for x, y in zip(states[layer][0].numpy(), states[layer + 1][0].numpy(), strict=True):
                x, y = x.astype(np.float64), y.astype(np.float64)
                cosines[layer].append(x @ y / np.sqrt((x @ x) * (y @ y)))
    np.testing.assert_allclose(measured, [1 - np.mean(values) for values in cosines], atol=1e-9)


def test_silent_layers_have_no_influence_and_go_first():
    model = tiny("qwen3")
    silence_layers(model, [2, 4])
    influence = block_influence(record_residual_stream(model, texts()).hidden_ND)
    assert influence[2] == pytest.approx(0, abs=1e-12)
    assert most_influence(influence, 4) == [0, 1, 3, 5]


@torch.no_grad()
def test_a_layer_that_makes_one_token_massive_stays_though_its_influence_is_small():
    """Token 7 alone is sent far along one direction by layer 3, as first tokens are in real models."""
    model = tiny("qwen3", initializer_range=0.05)
    silence_layers(model, list(range(6)))
    embeddings = model.model.embed_tokens.weight
    embeddings[:, 0] = 0
    embeddings[7] = 0
    embeddings[7, 0] = 1
    embeddings[8] = 0  # a padding token: zero all the way, which must not hide the massive one
    mlp = model.model.layers[3].mlp
    for linear in (mlp.gate_proj, mlp.up_proj, mlp.down_proj):
        linear.weight.zero_()
    mlp.gate_proj.weight[0, 0] = mlp.up_proj.weight[0, 0] = 10
    mlp.down_proj.weight[0, 0] = 10
    ids = torch.arange(8, 96)
    stream = record_residual_stream(model, [torch.cat([torch.tensor([7]), ids])])
    influence = block_influence(stream.hidden_ND)
    assert influence[3] == pytest.approx(influence[2], abs=1e-9)
    assert massive_activation_layers(stream.hidden_ND) == [3]
    assert most_influence(influence, 2, massive_activation_layers(stream.hidden_ND)) == [0, 3]


def test_layers_that_come_first_do_not_exceed_the_number_that_stay():
    assert most_influence([0.5, 0.1, 0.2, 0.3], 1, first=[1, 2]) == [2]


def test_trace_is_the_residual_stream_document_after_document():
    model = tiny("llama")
    sample = texts()
    stream = record_residual_stream(model, sample)
    assert stream.lengths == [len(ids) for ids in sample]
    torch.testing.assert_close(stream.hidden_ND[0], model.model.embed_tokens(torch.cat(sample)))
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.model.layers)


@given(st.lists(st.floats(0, 2), min_size=1, max_size=40), st.data())
def test_the_layers_that_stay_have_no_less_influence_than_those_that_go(influence, data):
    layers = data.draw(st.integers(1, len(influence)))
    keep = most_influence(influence, layers)
    gone = [influence[i] for i in range(len(influence)) if i not in keep]
    assert len(keep) == layers
    assert keep == sorted(set(keep))
    assert max(gone, default=0) <= min(influence[i] for i in keep)


@given(st.integers(1, 20), st.data())
def test_runs_and_kept_layers_are_all_layers_once(layers, data):
    keep = sorted(data.draw(st.sets(st.integers(0, layers - 1), min_size=1)))
    runs = removed_runs(keep, layers)
    removed = [layer for first, end in runs for layer in range(first, end)]
    assert sorted(keep + removed) == list(range(layers))
    assert all(end in keep or end == layers for _, end in runs)


@pytest.mark.parametrize("layers", [0, 7])
def test_an_impossible_number_of_layers_is_refused(layers):
    with pytest.raises(RecipeError, match="the model has 6"):
        most_influence([0.1] * 6, layers)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([0, 6], "no layer 6"),
        ([-1, 2], "no layer -1"),
        ([2, 0], "in order"),
        ([0, 0], "once"),
        ([], "list each"),
    ],
)
def test_a_wrong_list_of_layers_is_refused(keep, message):
    with pytest.raises(RecipeError, match=message):
        check_keep(keep, 6)


def test_a_model_with_other_layers_is_refused_by_name():
    entries = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 96}
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    model = GPTNeoXForCausalLM(GPTNeoXConfig(**entries, intermediate_size=32))
    with pytest.raises(ModelError, match="gpt_neox model: its layers have no q_proj"):
        prune_depth(model, [0])
