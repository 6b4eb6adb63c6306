"""The plan of a study: each arm costs what its recipe alone would cost, times the seeds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from stillhouse.cli import main
from stillhouse.pipeline.study_plan import plan_study
from stillhouse.plan import Machine, plan
from stillhouse.recipe.load import parse_recipe
from stillhouse.recipe.study import load_study

TWO_CORES = Machine(121e9, 328e9, 22e9, fast_bfloat16=True)
STUDY = """\
study: planned
seeds: [3, 4, 5]
questions: {source: QUESTIONS, test: 8}
verifiers: [{kind: format}]
answers: {samples: 2}
common:
  teacher: {model: TEACHER, terms: own}
  prompts: {held_out: 6}
  collect: {max_tokens: 16}
  train: {batch_tokens: 256, max_length: 128}
  evaluate: {control: false}
arms:
  small:
    label: two layers
    recipe: {student: {init: prune, layers: 2}}
  again:
    label: two layers, trained twice
    recipe: {student: {init: pretrained, model: "{runs}/small/student"}}
"""


@pytest.fixture
def study_file(tmp_path, tiny_teacher, questions, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.replace("TEACHER", str(tiny_teacher)).replace("QUESTIONS", str(questions)))
    return path


def test_an_arm_costs_what_its_recipe_costs(study_file, tmp_path, tiny_teacher, questions):
    planned = plan_study(load_study(study_file), study_file, tmp_path / "runs/planned", TWO_CORES)
    assert not (tmp_path / "runs").exists()
    # the same 32 prompts and 6 held out, as a recipe of their own
    recipe = parse_recipe(
        f"""\
name: small
seed: 3
teacher: {{model: {tiny_teacher}, terms: own}}
prompts: {{source: {questions}, held_out: 6, limit: 32}}
student: {{init: prune, layers: 2}}
collect: {{max_tokens: 16}}
train: {{batch_tokens: 256, max_length: 128}}
evaluate: {{control: false}}
"""
    )
    alone = plan(recipe, TWO_CORES)
    small, again = planned.arms
    assert [stage.name for stage in small.run.stages] == [stage.name for stage in alone.stages]
    assert small.run.seconds == pytest.approx(alone.seconds, rel=0.02)
    # the stand-in has the pruned student's shape: what trains is as large in both arms
    training = [{stage.name: stage.seconds for stage in arm.run.stages}["train"] for arm in planned.arms]
    assert training[0] == pytest.approx(training[1], rel=0.02)
    assert small.tests_seconds == pytest.approx(again.tests_seconds, rel=0.02)
    assert planned.seconds == pytest.approx(
        3 * sum(arm.run.seconds + arm.tests_seconds for arm in planned.arms)
    )


def test_still_plan_prints_the_arms_and_the_total(study_file, capsys):
    assert main(["plan", str(study_file), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert list(data["arms"]) == ["small", "again"]
    assert data["seconds"] == pytest.approx(3 * sum(arm["seconds"] for arm in data["arms"].values()))
    assert main(["run", str(study_file), "--dry-run"]) == 0
    table = capsys.readouterr().out
    assert "Plan of planned, by arm for one seed" in table
    assert "all, 3 seeds" in table


def test_an_arm_whose_terms_refuse_the_purpose_is_shown_and_refused(study_file, capsys):
    study_file.write_text(
        study_file.read_text()
        .replace("terms: own", "terms: openai")
        .replace("common:", "common:\n  purpose: competing")
    )
    assert main(["plan", str(study_file)]) == 3
    captured = capsys.readouterr()
    assert "two layers, trained twice" in captured.out
    assert "terms" in captured.err


def test_a_study_accepts_terms_in_its_file(study_file, capsys):
    assert main(["plan", str(study_file), "--accept-terms", "why not"]) == 2
    assert "accept_terms in `common`" in capsys.readouterr().err


def test_a_verifier_whose_column_the_test_does_not_have_is_refused(study_file, capsys):
    study_file.write_text(study_file.read_text().replace("kind: format", "kind: exact"))
    assert main(["plan", str(study_file)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "exact reads reference answers from the column 'answer', which no question of the test test has"
        in said
    )


def test_the_examples_of_the_page_on_studies_can_be_planned(tmp_path, tiny_teacher, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "studies.md").read_text()
    examples = re.findall(r"```(yaml|python|json)\n(.*?)```", page, re.DOTALL)
    studies = [text for kind, text in examples if kind == "yaml"]
    rows = next(text for kind, text in examples if kind == "json").splitlines()
    (tmp_path / "make_data.py").write_text(next(text for kind, text in examples if kind == "python"))
    lines = [json.loads(row) for row in rows]
    assert all({"question", "answer"} <= line.keys() for line in lines)
    with (tmp_path / "questions.jsonl").open("w") as file:
        for number in range(160):
            file.write(json.dumps({"question": f"{number} {number + 1}?", "answer": f"{number}"}) + "\n")
    monkeypatch.chdir(tmp_path)
    assert len(studies) == 2
    for text in studies:
        study = text.replace("embedded:smollm2", f"{tiny_teacher}, terms: own").replace(
            "layers: 15", "layers: 2"
        )
        (tmp_path / "study.yaml").write_text(study)
        assert main(["plan", "study.yaml"]) == 0, capsys.readouterr().err
