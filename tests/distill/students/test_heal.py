"""Healing: the fitted map against numpy, and what it does to a whole model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from tiny_decoders import logits, silence_layers, texts, tiny

from stillhouse.distill.students.heal import can_heal, fit_map, heal
from stillhouse.distill.students.importance import record_residual_stream
from stillhouse.distill.students.prune_depth import prune_depth

KEEP = [0, 2, 5]


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 30), st.floats(0.01, 10), st.floats(0.1, 100)
)
@settings(deadline=None)
def test_map_is_the_weighted_ridge_regression_that_numpy_finds(seed, channels, tokens, ridge, scale):
    """Ridge as extra rows of an ordinary least squares problem, which numpy solves by singular values."""
    generator = np.random.default_rng(seed)
    mlp = generator.normal(size=(tokens, channels)) * scale
    residual = generator.normal(size=(tokens, channels))
    weights = generator.uniform(0.1, 3, size=tokens)
    pull = ridge * np.mean(np.sum(weights[:, None] * mlp**2, axis=0))
    rows = np.concatenate([np.sqrt(weights)[:, None] * mlp, np.sqrt(pull) * np.eye(channels)])
    wanted = np.concatenate([np.sqrt(weights)[:, None] * (mlp + residual), np.sqrt(pull) * np.eye(channels)])
    expected = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    found = fit_map(*map(torch.from_numpy, (mlp, residual, weights)), ridge)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_reported_errors_are_those_of_the_healed_model_itself(kind):
    """Run the saved weights afresh and compare hidden states at each gap with the parent's."""
    parent, sample = tiny(kind), texts(20)
    stream = record_residual_stream(parent, sample)
    student = prune_depth(parent, KEEP)
    runs = heal(student, KEEP, stream, ridge=0.01)
    healed = record_residual_stream(student, sample)
    assert [(run.first, run.last) for run in runs] == [(1, 1), (3, 4)]
    for run, gap in zip(runs, (1, 2), strict=True):
        target, found = stream.hidden_ND[run.last + 1].double(), healed.hidden_ND[gap].double()
        error = ((found - target).norm(dim=-1) / target.norm(dim=-1)).square().mean().item()
        assert run.error_after == pytest.approx(error, rel=1e-3)
        assert run.error_after < run.error_before


def test_healing_brings_the_student_closer_to_its_parent_on_other_text():
    parent = tiny("llama", initializer_range=0.08, num_hidden_layers=6)
    stream = record_residual_stream(parent, texts(60, 30))
    healed, unhealed = prune_depth(parent, KEEP), prune_depth(parent, KEEP)
    heal(healed, KEEP, stream)

    def divergence(student):
        total = 0.0
        for ids in texts(5, 30, seed=9):
            log_p, log_q = (F.log_softmax(logits(model, ids).double(), -1) for model in (parent, student))
            total += F.kl_div(log_q, log_p, log_target=True, reduction="batchmean").item()
        return total

    assert divergence(healed) < divergence(unhealed)


def test_silent_layers_leave_nothing_to_heal():
    parent = tiny("qwen3")
    silence_layers(parent, [1, 3, 4])
    student = prune_depth(parent, KEEP)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    runs = heal(student, KEEP, record_residual_stream(parent, texts()))
    assert [run.error_before for run in runs] == pytest.approx([0, 0], abs=1e-10)
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_padding_token_whose_state_stays_zero_does_no_harm():
    parent = tiny("qwen3")
    parent.model.embed_tokens.weight[5] = 0
    sample = [torch.cat([torch.tensor([5]), ids]) for ids in texts(10)]
    student = prune_depth(parent, KEEP)
    runs = heal(student, KEEP, record_residual_stream(parent, sample))
    assert all(0 < run.error_after < run.error_before for run in runs)
    assert all(value.isfinite().all() for value in student.state_dict().values())


def test_a_gap_at_the_start_has_no_layer_that_could_hold_a_map():
    parent = tiny("llama")
    student = prune_depth(parent, [2, 3])
    runs = heal(student, [2, 3], record_residual_stream(parent, texts()))
    assert [(run.first, run.last) for run in runs] == [(4, 5)]


def test_only_down_projections_before_gaps_change():
    parent = tiny("llama")
    student = prune_depth(parent, KEEP)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    heal(student, KEEP, record_residual_stream(parent, texts()))
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {
        f"model.layers.{layer}.mlp.down_proj.{part}" for layer in (0, 1) for part in ("weight", "bias")
    }


def test_a_norm_after_the_mlp_rules_healing_out():
    assert can_heal(tiny("qwen3"))
    assert not can_heal(tiny("gemma3"))
