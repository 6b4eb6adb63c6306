"""Paths in recipes, studies and plans are relative to the file that names them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stillhouse.pipeline.resume import compare_recipes, recorded_form
from stillhouse.provenance import recipe_section_hash
from stillhouse.recipe.load import dump_recipe, load_recipe, load_run_recipe, parse_recipe
from stillhouse.recipe.paths import map_paths
from stillhouse.recipe.study import arm_recipe, load_study
from stillhouse.trace.plan import TracePlan, load_plan, resolve_plan

RECIPE = """\
name: first
teacher: {model: models/large, system: "file:texts/system.txt", examples: examples.jsonl}
teachers: [{model: ../other, route: {domain: code}}]
prompts: {source: questions.jsonl}
student: {init: scratch, config: {model_type: llama}, tokenizer: hub:org/tokenizer}
"""
FILES = ("texts/system.txt", "examples.jsonl", "questions.jsonl")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a recipe and its files in `work/`; the working directory is the project."""
    for name in FILES:
        file = tmp_path / "work" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    (tmp_path / "work" / "models" / "large").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "work" / "r.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paths_of(section) -> list[str]:
    texts: list[str] = []
    map_paths(type(section), section, lambda key, text: texts.append(text) or text)
    return texts


def test_paths_are_relative_to_the_recipe(project, capsys):
    recipe = load_recipe("work/r.yaml")
    assert recipe.teacher.model == "work/models/large"
    assert recipe.teacher.system == "file:work/texts/system.txt"
    assert recipe.teacher.examples == "work/examples.jsonl"
    assert recipe.teachers[0].model == "other"
    assert recipe.prompts.source == "work/questions.jsonl"
    assert recipe.student.tokenizer == "hub:org/tokenizer"
    assert capsys.readouterr().err == ""


def test_outside_the_working_directory_they_are_absolute(project, monkeypatch):
    elsewhere = project / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    recipe = load_recipe("../work/r.yaml")
    assert recipe.prompts.source == str(project / "work" / "questions.jsonl")
    assert recipe.teachers[0].model == str(project / "other")


def test_beside_the_recipe_they_stay_as_written(project, monkeypatch):
    monkeypatch.chdir(project / "work")
    assert load_recipe("r.yaml") == parse_recipe(RECIPE)


@pytest.mark.parametrize(
    "text",
    ["/data/q.jsonl", "~/q.jsonl", "package:mmlu", "reasoning_gym:chain_sum?size=2", "api:http://h/v1#m"],
)
def test_other_texts_stay_as_written(project, text):
    (project / "work" / "r.yaml").write_text(RECIPE.replace("source: questions.jsonl", f"source: {text!r}"))
    assert load_recipe("work/r.yaml").prompts.source == text


def test_a_plain_system_prompt_is_not_a_path(project):
    (project / "work" / "r.yaml").write_text(RECIPE.replace("file:texts/system.txt", "texts"))
    assert load_recipe("work/r.yaml").teacher.system == "texts"


def test_an_override_is_relative_to_the_working_directory(project):
    (project / "mine.jsonl").write_text("x")
    recipe = load_recipe(
        "work/r.yaml", ["prompts.source=mine.jsonl", "student={init: prune, model: m, layers: 2}"]
    )
    assert recipe.prompts.source == "mine.jsonl"
    assert recipe.student.model == "m"
    assert recipe.teacher.model == "work/models/large"


def test_a_student_that_is_also_the_teacher_is_resolved_once(project):
    (project / "work" / "r.yaml").write_text(
        "name: n\nprompts: {source: questions.jsonl}\nstudent: {model: models/large}\n"
    )
    assert load_recipe("work/r.yaml").teacher.model == "work/models/large"
    assert load_recipe("work/r.yaml", ["student.model=m"]).teacher.model == "m"


def test_a_path_that_exists_only_in_the_working_directory_still_works_with_a_warning(project, capsys):
    (project / "work" / "questions.jsonl").rename(project / "questions.jsonl")
    assert load_recipe("work/r.yaml").prompts.source == "questions.jsonl"
    warning = " ".join(capsys.readouterr().err.split())
    assert "work/r.yaml:4: questions.jsonl is in the working directory, not beside r.yaml" in warning
    assert "write ../questions.jsonl" in warning


def test_a_pattern_of_files_is_a_path(project, capsys):
    (project / "work" / "r.yaml").write_text(RECIPE.replace("questions.jsonl", "qu*.jsonl"))
    assert load_recipe("work/r.yaml").prompts.source == "work/qu*.jsonl"
    (project / "work" / "questions.jsonl").rename(project / "questions.jsonl")
    assert load_recipe("work/r.yaml").prompts.source == "qu*.jsonl"
    assert "working directory" in capsys.readouterr().err


def record(recipe, directory: Path):
    """Writes the recipe of a run as `still run` does; returns it as recorded."""
    directory.mkdir(parents=True, exist_ok=True)
    recorded = recorded_form(recipe, directory)
    (directory / "recipe.yaml").write_text(dump_recipe(recorded))
    return recorded


def test_the_recipe_of_a_run_can_be_run_from_anywhere(project, monkeypatch, capsys):
    run = project / "runs" / "first"
    recorded = record(load_recipe("work/r.yaml"), run)
    assert recorded.prompts.source == "../../work/questions.jsonl"
    for directory in (project, run, project / "work", Path("/")):
        monkeypatch.chdir(directory)
        again = load_recipe(run / "recipe.yaml")
        assert {os.path.normpath(Path(p).absolute()) for p in paths_of(again) if ":" not in p} == {
            str(project / p)
            for p in (
                "work/models/large",
                "work/texts/system.txt",
                "work/examples.jsonl",
                "other",
                "work/questions.jsonl",
            )
        }
        assert load_run_recipe(run) == again
        # and so it is the same recipe, whose finished stages stay valid
        assert (
            recorded_form(again, run) == recorded_form(load_recipe(project / "work/r.yaml"), run) == recorded
        )
    assert capsys.readouterr().err == ""


def test_a_project_can_be_moved_as_a_whole(project, monkeypatch):
    recorded = record(load_recipe("work/r.yaml"), project / "runs" / "first")
    monkeypatch.chdir(project.parent)
    moved = project.rename(project.with_name("moved"))
    again = load_recipe(moved / "work" / "r.yaml")
    assert recorded_form(again, moved / "runs" / "first") == recorded


def test_a_run_of_an_earlier_version_resumes(project, monkeypatch):
    """It recorded paths relative to the working directory, and its stages hold hashes of them."""
    old = (
        RECIPE.replace("models/large", "work/models/large")
        .replace("../other", "./other")
        .replace("texts/", "work/texts/")
        .replace(" examples.jsonl", " work/examples.jsonl")
        .replace("questions.jsonl", "work/questions.jsonl")
    )
    run = project / "runs" / "first"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(dump_recipe(parse_recipe(old)))
    now = recorded_form(load_recipe("work/r.yaml"), run)
    for section in ("teacher", "teachers", "prompts", "student"):
        assert recipe_section_hash(now, section) == recipe_section_hash(parse_recipe(old), section)
    assert compare_recipes(parse_recipe(old), now, run).refused == []


def test_another_file_of_the_same_name_is_another_recipe(project):
    run = project / "runs" / "first"
    before = record(load_recipe("work/r.yaml"), run)
    (project / "questions.jsonl").write_text("other")
    other = load_recipe("work/r.yaml", ["prompts.source=questions.jsonl"])
    (run / "corpus" / "collected").mkdir(parents=True)
    (run / "corpus" / "collected" / "journal-0.jsonl").write_text("{}\n")
    changes = compare_recipes(before, recorded_form(other, run), run)
    assert changes.refused == [("prompts.source", "../../work/questions.jsonl", "../../questions.jsonl")]


STUDY = """\
study: s
seeds: [1]
make: tasks.py
tests: {own: "{data}/t.jsonl", given: questions.jsonl}
verifiers: [{kind: exact}]
common: {prompts: {source: questions.jsonl}}
arms:
  a: {label: l, recipe: {student: {model: models/large}}}
  b: {label: l, recipe: {student: {model: "{runs}/a/student"}, prompts: {source: "{data}/p.jsonl"}}}
"""


def test_paths_of_a_study_are_relative_to_it_and_those_of_its_runs_are_not(project):
    (project / "work" / "tasks.py").write_text("")
    (project / "work" / "study.yaml").write_text(STUDY)
    study = load_study(Path("work/study.yaml"))
    assert study.make == "work/tasks.py"
    assert study.tests == {"own": "{data}/t.jsonl", "given": "work/questions.jsonl"}
    a, b = (arm_recipe(study, name, 1, Path("runs/s/data"), Path("runs/s")) for name in "ab")
    assert (a.student.model, a.prompts.source) == ("work/models/large", "work/questions.jsonl")
    assert (b.student.model, b.prompts.source) == ("runs/s/a/student", "runs/s/data/p.jsonl")
    changed = load_study(Path("work/study.yaml"), ["common.prompts.source=q.jsonl"])
    assert arm_recipe(changed, "a", 1, Path("d"), Path("r")).prompts.source == "q.jsonl"


PLAN = """\
suspect: ../other
references: [models/large, hub:org/model]
teachers: [{name: ours, model: models/large, log: log.parquet, canaries: c.jsonl}]
tests: {rephrasings: {texts: texts/t.jsonl}}
"""


def test_paths_of_a_plan_are_relative_to_it_and_named_without_parents(project, monkeypatch):
    (project / "work" / "plan.yaml").write_text(PLAN)
    plan = load_plan("work/plan.yaml")
    assert paths_of(plan) == [
        "other",
        "work/log.parquet",
        "work/models/large",
        "work/c.jsonl",
        "work/models/large",
        "hub:org/model",
        "work/texts/t.jsonl",
    ]
    monkeypatch.chdir(project / "work")
    for loaded in (load_plan("plan.yaml"), TracePlan()):
        resolved = resolve_plan(
            loaded,
            suspect=None if loaded.suspect else "../other",
            teachers=loaded.teachers or load_plan("plan.yaml").teachers,
            references=(),
        )
        assert resolved.suspect == str(project / "other")
        assert not any(".." in Path(path).parts for path in paths_of(resolved))
