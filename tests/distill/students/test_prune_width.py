"""Width pruning against the parent with the same parts silenced."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny_decoders import KINDS, logits, texts, tiny
from torch import nn

from stillhouse.distill.students.importance import width_importance
from stillhouse.distill.students.prune_width import correct_norms, prune_width, select_width
from stillhouse.errors import ModelError, RecipeError

NO_CUT = {"intermediate": None, "heads": None, "hidden": None}


def cut_of(model, **sizes):
    importance = width_importance(model, texts())
    return select_width(model, importance, **{**NO_CUT, **sizes}), importance


def assert_same(pruned, parent):
    for ids in texts(seed=1):
        torch.testing.assert_close(logits(pruned, ids), logits(parent, ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_without_neurons_is_the_parent_with_those_neurons_silent(kind):
    parent = tiny(kind)
    cut, _ = cut_of(parent, intermediate=20)
    pruned = prune_width(parent, cut)
    assert pruned.config.intermediate_size == 20
    for layer, kept in zip(parent.model.layers, cut.neurons, strict=True):
        silent = torch.ones(48, dtype=torch.bool)
        silent[kept] = False
        layer.mlp.down_proj.weight[:, silent] = 0
    assert_same(pruned, parent)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_without_head_groups_is_the_parent_with_those_heads_silent(kind):
    parent = tiny(kind)
    cut, _ = cut_of(parent, heads=1)
    pruned = prune_width(parent, cut)
    config = pruned.config
    assert (config.num_key_value_heads, config.num_attention_heads, config.head_dim) == (1, 2, 12)
    for layer, (kept,) in zip(parent.model.layers, cut.groups, strict=True):
        silent = slice(24, 48) if kept == 0 else slice(0, 24)  # two query heads of 12 share a group
        layer.self_attn.o_proj.weight[:, silent] = 0
    assert_same(pruned, parent)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@torch.no_grad()
def test_without_dead_channels_is_the_parent(kind):
    """Channels that are always zero carry nothing, and the corrected norms make up for their number."""
    parent = tiny(kind, rms_norm_eps=1e-12)
    dead = [3, 8, 9, 30]
    parent.model.embed_tokens.weight[:, dead] = 0
    for layer in parent.model.layers:
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.weight[dead] = 0
            if linear.bias is not None:
                linear.bias[dead] = 0
    cut, importance = cut_of(parent, hidden=28)
    assert cut.channels is not None
    assert sorted({*range(32)} - {*cut.channels.tolist()}) == dead
    pruned = prune_width(parent, cut)
    correct_norms(pruned, importance.energy_D, cut.channels)
    assert pruned.config.hidden_size == 28
    assert_same(pruned, parent)


@torch.no_grad()
def test_corrected_norms_come_closer_to_the_parent_than_uncorrected_ones():
    parent = tiny("qwen3", initializer_range=0.1)
    parent.model.embed_tokens.weight[:, :8] *= 6
    cut, importance = cut_of(parent, hidden=16)
    assert cut.channels is not None
    plain, corrected = prune_width(parent, cut), prune_width(parent, cut)
    correct_norms(corrected, importance.energy_D, cut.channels)
    ids = texts(1, 60, seed=5)[0]

    def divergence(model):
        log_p, log_q = (F.log_softmax(logits(m, ids).double(), -1) for m in (parent, model))
        return F.kl_div(log_q, log_p, log_target=True, reduction="batchmean").item()

    assert divergence(corrected) < divergence(plain)


@torch.no_grad()
def test_a_padding_token_whose_state_stays_zero_does_no_harm():
    model = tiny("qwen3")
    model.model.embed_tokens.weight[5] = 0
    importance = width_importance(model, [torch.tensor([5, 6, 7])])
    assert all(values.isfinite().all() for values in importance.energy_D)
    assert importance.energy_D[0].sum().item() == pytest.approx(32 * 2 / 3)  # two of three tokens have energy


@torch.no_grad()
def test_importance_is_the_mean_activation_of_the_first_layer_by_hand():
    """The slow way: embeddings, norm and products written out for one layer without attention's positions."""
    model = tiny("qwen3")
    sample = texts()
    attention = []
    first = model.model.layers[0]
    handle = first.self_attn.register_forward_hook(lambda _m, _a, output: attention.append(output[0][0]))
    measured = width_importance(model, sample)
    handle.remove()

    embedded = model.model.embed_tokens(torch.cat(sample)).double()
    hidden = embedded + torch.cat(attention).double()

    def norm(x, module):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * module.weight.double()

    x = norm(hidden, first.post_attention_layernorm)
    gate, up = (x @ linear.weight.double().T for linear in (first.mlp.gate_proj, first.mlp.up_proj))
    expected = (gate * torch.sigmoid(gate) * up).abs().mean(0)
    torch.testing.assert_close(measured.neurons_LI[0], expected, rtol=1e-4, atol=1e-6)

    energy = (embedded.square() / embedded.square().mean(-1, keepdim=True)).mean(0)
    torch.testing.assert_close(measured.energy_D[0], energy, rtol=1e-5, atol=0)


@torch.no_grad()
def test_silent_heads_and_neurons_have_no_importance_and_go_first():
    model = tiny("llama")
    layer = model.model.layers[3]
    layer.self_attn.v_proj.weight[:12] = 0
    layer.self_attn.v_proj.bias[:12] = 0
    layer.mlp.up_proj.weight[5:15] = 0
    layer.mlp.up_proj.bias[5:15] = 0
    cut, importance = cut_of(model, intermediate=38, heads=1)
    assert importance.groups_LK[3][0] == 0
    assert importance.groups_LK[3][1] > 0
    assert cut.groups[3].tolist() == [1]
    assert cut.neurons[3].tolist() == [*range(5), *range(15, 48)]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"intermediate": 49}, "cannot keep 49 MLP neurons: the model has 48"),
        ({"heads": 3}, "cannot keep 3 key-value head groups: the model has 2"),
        ({"hidden": 0}, "cannot keep 0 hidden channels: the model has 32"),
    ],
)
def test_more_than_there_is_is_refused(sizes, message):
    with pytest.raises(RecipeError, match=message):
        cut_of(tiny("llama"), **sizes)


def test_hidden_channels_of_gemma_are_refused():
    with pytest.raises(ModelError, match="it scales its embeddings"):
        cut_of(tiny("gemma3"), hidden=16)


def test_a_width_that_heads_do_not_divide_is_refused():
    model = tiny("llama")
    cut, _ = cut_of(model, hidden=30)
    with pytest.raises(ModelError, match="not a multiple of the number of attention heads"):
        prune_width(model, cut)


def test_an_unknown_parameter_is_refused_not_guessed():
    model = tiny("qwen3")
    cut, _ = cut_of(model, intermediate=20)
    model.model.layers[0].mlp.gate_scale = nn.Parameter(torch.ones(48))
    with pytest.raises(ModelError, match=r"unknown parameter model\.layers\.0\.mlp\.gate_scale"):
        prune_width(model, cut)
