"""Whole runs in which the teacher sees more than the student, or there are several teachers."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.dataset
import pytest
from conftest import make_tiny_teacher
from misbehaving_server import Teacher, serving
from still_command import still
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
    assert "visible to the teacher only" in card
    assert str(tmp_path) not in card
    assert still("verify", run, cwd=tmp_path).returncode == 0
    again = still("run", recipe, cwd=tmp_path)
    assert "collect: unchanged, skipped" in again.stderr


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
    assert "teacher.system: nowhere.txt: no such file" in result.stderr
    assert not (tmp_path / "runs/small/corpus").exists()


def tagged(place: Path) -> Path:
    """Forty questions, of which every third is about code."""
    path = place / "tagged.jsonl"
    lines = [
        {"prompt": f"{n} what keeps {n * n} answers apart?", "domain": "code" if n % 3 == 0 else "prose"}
        for n in range(40)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def second(tmp_path) -> Path:
    return make_tiny_teacher(tmp_path / "second", seed=5, hidden=16, layers=1)


def test_two_teachers_by_tag_offline_and_on_policy(tmp_path, tiny_teacher, second, examples):
    """The second sees a context that nobody else does."""
    recipe = write_recipe(
        tmp_path,
        tiny_teacher,
        tagged(tmp_path),
        teachers=[in_context(second, examples) | {"route": {"domain": "code"}}],
        student={"init": "pretrained", "model": str(make_tiny_teacher(tmp_path / "student", seed=7))},
        objective={"kind": "forward_kl", "targets": "topk", "top_k": 20},
        on_policy=ON_POLICY | {"off_policy": 0.3},
    )
    result = still("run", recipe, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "runs/small"
    for row in collected(run):
        assert Path(row["teacher"]).name == ("second" if '"code"' in row["tags"] else "teacher")
    assert {path.name for path in (run / "targets").iterdir()} == {"0", "1"}
    found = report(tmp_path)
    kl = divergence(found)
    assert kl["teacher"] == 0
    assert kl["student"] < kl["before"]
    assert found["models"][0]["label"].endswith("and 1 more")
    said = {row["messages"][-2]["content"]: row["messages"][-1]["content"] for row in collected(run)}
    assert all(item["replies"]["teacher"] == said[item["prompt"]] for item in found["answers"])
    assert Path(found["lineage"]["teacher 2"]).name == "second"
    card = (run / "student/README.md").read_text()
    assert "for the prompts with domain: code" in card
    assert still("verify", run, cwd=tmp_path).returncode == 0
    again = still("run", recipe, cwd=tmp_path)
    assert "targets: unchanged, skipped" in again.stderr


def test_two_teachers_averaged(tmp_path, tiny_teacher, second, questions):
    recipe = write_recipe(
        tmp_path,
        tiny_teacher,
        questions,
        teachers=[{"model": str(second), "terms": "apache-2.0", "weight": 3.0}],
        student={"init": "pretrained", "model": str(make_tiny_teacher(tmp_path / "student", seed=7))},
        objective={"kind": "jsd"},
        on_policy=ON_POLICY,
    )
    result = still("run", recipe, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert {Path(row["teacher"]).name for row in collected(tmp_path / "runs/small")} == {"teacher"}
    kl = divergence(report(tmp_path))
    assert kl["teacher"] == 0
    assert kl["student"] < kl["before"]


def test_an_api_teaches_some_prompts_by_its_text(tmp_path, tiny_teacher, examples):
    with serving(Teacher()) as url:
        second = {"model": f"api:{url}#second-1", "terms": "apache-2.0", "route": {"domain": "code"}}
        recipe = write_recipe(
            tmp_path,
            tiny_teacher,
            tagged(tmp_path),
            teachers=[second],
            student={"init": "pretrained", "model": str(tiny_teacher)},
            objective={"kind": "cross_entropy"},
        )
        result = still("run", recipe, cwd=tmp_path, OPENAI_API_KEY="none")
    assert result.returncode == 0, result.stderr
    by_api = [row for row in collected(tmp_path / "runs/small") if row["teacher"].startswith("api:")]
    assert len(by_api) == 14
    assert all('"code"' in row["tags"] for row in by_api)
    assert [model["key"] for model in report(tmp_path)["models"]] == ["before", "student"]


def test_every_teachers_terms_are_checked(tmp_path, tiny_teacher, second):
    recipe = write_recipe(
        tmp_path,
        tiny_teacher,
        tagged(tmp_path),
        teachers=[{"model": str(second), "terms": "openai", "route": {"domain": "code"}}],
    )
    result = still("run", recipe, "--purpose", "competing", cwd=tmp_path)
    assert result.returncode == 3, result.stderr
