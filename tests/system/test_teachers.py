"""Whole runs in which the teacher sees more than the student, or there are several teachers."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.dataset
import pytest
from conftest import still
from test_other_recipes import ON_POLICY, divergence, report
from test_runs import write_recipe

pytestmark = pytest.mark.slow


@pytest.fixture
def examples(tmp_path) -> Path:
    path = tmp_path / "examples.jsonl"
    path.write_text(
        json.dumps({"prompt": "what matters?", "completion": "every answer from the still"}) + "\n"
    )
    return path


def in_context(model: Path, examples: Path) -> dict:
    system = examples.with_suffix(".txt")
    system.write_text("the spirit keeps what others only sound like\n")
    return {
        "model": str(model),
        "terms": "apache-2.0",
        "system": f"file:{system}",
        "examples": str(examples),
        "context": "private",
    }


def collected(place: Path) -> list[dict]:
    return pyarrow.dataset.dataset(place / "corpus/collected", format="parquet").to_table().to_pylist()


def test_context_distillation_offline_and_on_policy(tmp_path, tiny_teacher, questions, examples):
    """Teacher and student are one model; the student nears what the context makes of it, without it."""
    recipe = write_recipe(
        tmp_path,
        tiny_teacher,
        questions,
        teacher=in_context(tiny_teacher, examples),
        student={"init": "pretrained", "model": str(tiny_teacher)},
        objective={"kind": "forward_kl"},
        on_policy=ON_POLICY,
    )
    result = still("run", recipe, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "runs/small"
    found = report(tmp_path)
    kl = divergence(found)
    assert list(kl) == ["teacher", "before", "offline", "student", "control"]
    assert kl["teacher"] == 0
    assert kl["before"] > 0.01
    assert max(kl["student"], kl["offline"]) < 0.8 * kl["before"]
    assert {len(row["messages"]) for row in collected(run)} == {2}  # question and answer, no context
    first = json.loads((run / "on_policy/metrics.jsonl").read_text().splitlines()[0])
    assert first["teacher"] > 0.01
    assert all(len(item["messages"]) == 1 for item in found["answers"])
    card = (run / "student/README.md").read_text()
    assert "seen by the teacher alone" in card
    assert str(tmp_path) not in card
    assert still("verify", run, cwd=tmp_path).returncode == 0
    again = still("run", recipe, cwd=tmp_path)
    assert "collect: done before, unchanged" in again.stderr


@pytest.mark.parametrize("changes", [{"kind": "cross_entropy"}, {"kind": "jsd", "targets": "online"}])
def test_context_distillation_by_text_and_with_the_teacher_at_hand(
    tmp_path, tiny_teacher, questions, examples, changes
):
    recipe = write_recipe(
        tmp_path,
        tiny_teacher,
        questions,
        teacher=in_context(tiny_teacher, examples),
        student={"init": "pretrained", "model": str(tiny_teacher)},
        objective=changes,
    )
    result = still("run", recipe, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    models = {model["key"]: model for model in report(tmp_path)["models"]}
    assert models["student"]["perplexity"]["value"] < models["before"]["perplexity"]["value"]
    if changes["kind"] != "cross_entropy":  # a few random sentences learned by heart bring nobody near
        assert models["student"]["kl"]["value"] < models["before"]["kl"]["value"]


def test_a_missing_file_of_the_context_is_refused_before_the_teacher_is_asked(
    tmp_path, tiny_teacher, questions
):
    teacher = {"model": str(tiny_teacher), "terms": "apache-2.0", "system": "file:nowhere.txt"}
    result = still("run", write_recipe(tmp_path, tiny_teacher, questions, teacher=teacher), cwd=tmp_path)
    assert result.returncode == 1
    assert "teacher.system: there is no file nowhere.txt" in result.stderr
    assert not (tmp_path / "runs/small/corpus").exists()
