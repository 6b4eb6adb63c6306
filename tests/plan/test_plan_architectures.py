"""Architectures that a run would fail with are refused by the plan, on a tiny copy, before money is spent."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import AutoConfig

import stillhouse.distill
import stillhouse.models
from stillhouse.errors import CapabilityError, ModelError, RecipeError
from stillhouse.plan import architectures, preflight
from stillhouse.recipe.load import parse_recipe


@pytest.fixture(autouse=True)
def no_result_is_kept():
    architectures._try_student.cache_clear()


def recipe(*overrides):
    text = """\
name: n
teacher: {model: 'api:http://127.0.0.1:9/v1#m', terms: apache-2.0}
prompts: {source: package:mmlu, limit: 20, held_out: 5}
student: {init: scratch, tokenizer: 'embedded:smollm2'}
objective: {kind: cross_entropy}
"""
    return parse_recipe(text, overrides=overrides)


def student(model_type, **settings):
    return f"student.config={json.dumps({'model_type': model_type, **settings})}"


@pytest.mark.parametrize(
    "config",
    [
        student("mistral", sliding_window=4096),
        student("deepseek_v3"),
        student("gemma3_text"),
        student("stablelm"),
        student("lfm2"),
    ],
)
def test_real_sizes_of_supported_architectures_pass(config):
    preflight(recipe(config), ["student", "train"])


@pytest.mark.parametrize(
    ("overrides", "error", "said"),
    [
        ([student("qwen3", hidden_sise=8)], RecipeError, "qwen3 has no setting 'hidden_sise'"),
        ([student("qwen33")], RecipeError, "no model_type 'qwen33'"),
        ([student("llama4_text")], ModelError, "student.config cannot be trained: a small copy of it fails"),
        (
            [student("phi3"), "student.lora={targets: [q_proj]}"],
            RecipeError,
            "student.lora.targets: the student's decoder has no linear layer named 'q_proj'",
        ),
        (
            [student("llama"), "student.lora={targets: [q_proj, lm_head]}"],
            RecipeError,
            "no linear layer named 'lm_head'",
        ),
    ],
)
def test_what_a_run_would_fail_with_is_said_by_the_plan(overrides, error, said):
    with pytest.raises(error, match=said):
        preflight(recipe(*overrides), ["student", "train"])


def test_a_student_that_cannot_be_sampled_is_refused_only_where_it_learns_on_policy(monkeypatch):
    def refuses(*_args, **_options):
        raise CapabilityError("sampling from a llama model is not supported")

    monkeypatch.setattr(stillhouse.models, "sample", refuses)
    preflight(recipe(student("llama")), ["student"])
    on_policy = ["on_policy={teacher: 0, reward: 1}", "verifiers=[{kind: math}]"]
    with pytest.raises(ModelError, match=r"student\.config cannot be sampled: sampling from a llama"):
        preflight(recipe(student("llama"), *on_policy), ["student"])


def test_adapters_of_any_architecture_are_tried():
    preflight(recipe(student("phi3"), "student.lora={targets: [qkv_proj, down_proj]}"), ["train"])


def test_a_saved_form_that_is_not_the_student_is_found(monkeypatch):
    def other(model):
        copy = original(model)
        copy.lm_head.weight.data.mul_(-1)
        return copy

    original = stillhouse.distill.merged
    monkeypatch.setattr(stillhouse.distill, "merged", other)
    with pytest.raises(ModelError, match="not the same after saving"):
        preflight(recipe(student("llama")), ["student"])


def model_of(tiny_teacher, directory, **config):
    shutil.copytree(tiny_teacher, directory)
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


def test_the_text_part_of_a_model_with_vision_is_tried(tiny_teacher, tmp_path):
    config = AutoConfig.for_model("gemma3").to_dict()
    reference = model_of(tiny_teacher, tmp_path / "gemma", **config)
    preflight(recipe("student.init=pretrained", "student.tokenizer=null", f"student.model={reference}"))


def test_an_unknown_architecture_is_named(tiny_teacher, tmp_path):
    reference = model_of(tiny_teacher, tmp_path / "new", model_type="llama9", num_hidden_layers=2)
    overrides = ["student.init=pretrained", "student.tokenizer=null", f"student.model={reference}"]
    with pytest.raises(ModelError, match="has no architecture 'llama9'"):
        preflight(recipe(*overrides), ["student"])
    local = [f"teacher.model={reference}", *overrides[:2], "student.model=embedded:smollm2"]
    with pytest.raises(ModelError, match="has no architecture 'llama9'"):
        preflight(recipe(*local), ["filter"])
