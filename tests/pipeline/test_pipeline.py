"""Errors before the first stage, and the lock on a run's directory."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any, cast

import pytest

from stillhouse.errors import EmptyCorpusError, RecipeError, StorageError
from stillhouse.files import take_lock
from stillhouse.pipeline import runner as pipeline
from stillhouse.pipeline.report import corpus_counts
from stillhouse.pipeline.run_context import RunContext
from stillhouse.pipeline.stages import STAGES, Stage, StageResult, create_student
from stillhouse.recipe.load import parse_recipe

SOUND = (
    "name: n\nteacher: {model: embedded:smollm2}\nprompts: {source: package:mmlu}\n"
    "student: {init: prune, layers: 2}\n"
)


@pytest.fixture
def ran(monkeypatch):
    """The names of the stages that ran; each does nothing."""
    names: list[str] = []

    def stage(name: str) -> Stage:
        def body(run: Any) -> StageResult:
            names.append(name)
            return StageResult([], {})

        return Stage(name, (), (), body)

    monkeypatch.setattr(pipeline, "STAGES", tuple(map(stage, ("collect", "filter", "student", "control"))))
    return names


def test_two_processes_are_not_in_one_run(tmp_path, ran):
    recipe = parse_recipe(SOUND)
    lock = take_lock(tmp_path / "run")
    try:
        with pytest.raises(StorageError, match="another process is writing"):
            pipeline.run(recipe, tmp_path / "run", until="filter")
        assert ran == []
    finally:
        os.close(lock)
    pipeline.run(recipe, tmp_path / "run", until="filter")
    assert ran == ["collect", "filter"]


def test_the_lock_is_given_back_after_an_error(tmp_path, ran, monkeypatch):
    def fail(recipe: Any, directory: Any) -> None:
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "RunContext", fail)
        with pytest.raises(OSError, match="no"):
            pipeline.run(parse_recipe(SOUND), tmp_path, until="filter")
    pipeline.run(parse_recipe(SOUND), tmp_path, until="filter")
    assert ran == ["collect", "filter"]


@pytest.mark.parametrize("until", [None, "control"])
def test_without_held_out_prompts_answers_are_collected_and_no_student_is_begun(tmp_path, ran, until):
    recipe = parse_recipe(SOUND, overrides=["prompts.held_out=0"])
    with pytest.raises(RecipeError, match=r"prompts\.held_out is 0"):
        pipeline.run(recipe, tmp_path, until=until)
    assert ran == []
    pipeline.run(recipe, tmp_path, until="filter")
    assert ran == ["collect", "filter"]


def test_a_filter_that_leaves_none_held_out_stops_the_run_before_the_student():
    run = SimpleNamespace(manifest=SimpleNamespace(facts={"filter": {"held_out": 0}}.__getitem__))
    with pytest.raises(EmptyCorpusError, match="no held-out exchange"):
        create_student(cast(Any, run))


def test_the_reports_corpus_leaves_out_bookkeeping_that_counted_nothing():
    quiet = {"finished_before": 0, "failed": {}, "set_aside": 0, "cost_usd": None, "stopped_by": None}
    facts = {"asked": 9, "collected": 9, "kept": 0, "lowest_concurrency": 8}
    facts |= {"seconds": 1.0, "cpu_seconds": 0.0}  # those of the last stage alone
    assert corpus_counts(facts | quiet) == {"asked": 9, "collected": 9, "kept": 0}
    assert corpus_counts({"failed": {"x": 1}, "finished_before": 2}) == {
        "failed": {"x": 1},
        "finished_before": 2,
    }


def test_a_stage_that_the_recipe_does_not_have_is_not_shown(tmp_path, monkeypatch):
    def stage(name: str, applies: bool) -> Stage:
        return Stage(name, (), (), lambda run: StageResult([], {}), lambda run: applies)

    monkeypatch.setattr(pipeline, "STAGES", (stage("collect", True), stage("select", False)))
    shown: list[str] = []
    for _ in range(2):  # the second time both are skipped
        pipeline.run(parse_recipe(SOUND), tmp_path, until="select", on_stage=shown.append)
    assert shown == ["collect"]
    applying = {s.name for s in STAGES if s.applies(RunContext(parse_recipe(SOUND), tmp_path))}
    assert {s.name for s in STAGES} - applying == {"select", "on_policy"}
    alone = parse_recipe(SOUND, overrides=["evaluate.control=false", "objective.kind=cross_entropy"])
    assert {s.name for s in STAGES if not s.applies(RunContext(alone, tmp_path))} == {
        "select",
        "targets",
        "control",
        "on_policy",
    }
