"""A run that learns only from verified answers, with the real command."""

from __future__ import annotations

import json

import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from still_command import still
from test_runs import write_recipe

pytestmark = pytest.mark.slow


def test_a_run_with_rejection_sampling_and_pass_at_1(tmp_path, tiny_teacher):
    """An easy task for a random teacher: an answer without the letter e."""
    (tmp_path / "easy.py").write_text("def right(row):\n    return 'e' not in row['text']\n")
    recipe = write_recipe(
        tmp_path,
        tiny_teacher,
        "reasoning_gym:chain_sum?size=30&seed=7&min_terms=2&max_terms=2",
        prompts={
            "source": "reasoning_gym:chain_sum?size=30&seed=7&min_terms=2&max_terms=2",
            "held_out": 6,
        },
        collect={"max_tokens": 8, "samples": 4},
        filter={"truncated": False, "near_duplicates": None, "contamination_ngram": None},
        verifiers=[{"kind": "function", "function": "easy:right"}, {"kind": "reasoning_gym", "weight": 1e-3}],
        train__max_length=256,
        select={"min_reward": 0.9},
        evaluate={"prompts": 1, "max_tokens": 8, "samples": 3, "sample_tokens": 8, "speed": False},
    )
    result = still("run", recipe, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    corpus = tmp_path / "runs/small/corpus"
    rows = pyarrow.dataset.dataset(corpus / "selected", format="parquet").to_table().to_pylist()
    learned = [row for row in rows if row["split"] == "train"]
    assert learned
    assert all("e" not in row["messages"][-1]["content"] for row in learned)
    assert len({row["prompt_id"] for row in learned}) == len(learned)
    scores = pq.read_table(corpus / "scores.parquet").to_pylist()
    assert any(score["reward"] < 0.9 for score in scores)
    manifest = json.loads((tmp_path / "runs/small/manifest.json").read_text())
    facts = manifest["stages"]["select"]["facts"]
    rates = {score["prompt_id"]: score["pass_rate"] for score in scores}
    assert facts["pass_at_1"]["value"] == pytest.approx(sum(rates.values()) / len(rates))
    assert facts["selected"] == len(learned)
    report = json.loads((tmp_path / "runs/small/report.json").read_text())
    for model in report["models"]:
        assert 0 <= model["pass_at_1"]["low"] <= model["pass_at_1"]["value"] <= 1
        assert model["samples"] == 3
    assert "cons@3" in (tmp_path / "runs/small/report.html").read_text()
    assert "pass@1" in result.stdout

    again = still("run", recipe, cwd=tmp_path)
    assert "select: unchanged, skipped" in again.stderr
    assert still("verify", "runs/small", cwd=tmp_path).returncode == 0
    rejects = pyarrow.dataset.dataset(corpus / "rejects", format="parquet").count_rows()
    (corpus / "scores.parquet").unlink()
    redone = still("run", recipe, cwd=tmp_path)
    assert redone.returncode == 0, redone.stderr
    assert "filter: unchanged, skipped" in redone.stderr
    assert "train: unchanged, skipped" in redone.stderr
    assert pyarrow.dataset.dataset(corpus / "rejects", format="parquet").count_rows() == rejects
    assert still("verify", "runs/small", cwd=tmp_path).returncode == 0


def test_nothing_verified_stops_the_run_with_advice(tmp_path, tiny_teacher, questions):
    recipe = write_recipe(
        tmp_path, tiny_teacher, questions, verifiers=[{"kind": "exact"}], select={"per_prompt": 2}
    )
    result = still("run", recipe, cwd=tmp_path)
    assert result.returncode == 1
    assert "has a reward of at least 1" in result.stderr
    assert "verifiers failed" in result.stderr


def test_reinforcement_begins_with_what_the_teacher_found_easy(tmp_path, tiny_teacher, questions):
    """The pass rates that selecting measured order the first pass of the student's own rounds."""
    (tmp_path / "easy.py").write_text("def right(row):\n    return 'e' not in row['text']\n")
    recipe = write_recipe(
        tmp_path,
        tiny_teacher,
        questions,
        collect={"max_tokens": 8, "samples": 4},
        filter={"truncated": False, "near_duplicates": None},
        student={"init": "pretrained", "model": str(tiny_teacher)},
        objective={"kind": "cross_entropy"},
        verifiers=[{"kind": "function", "function": "easy:right"}],
        train__epochs=1,
        select={"per_prompt": 1},
        on_policy={
            "rounds": 4, "prompts": 4, "samples": 4, "max_tokens": 8, "teacher": 0, "reward": 1,
            "order": "easy_first",
        },
        evaluate={"prompts": 1, "max_tokens": 8, "speed": False},
    )  # fmt: skip
    result = still("run", recipe, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "runs/small"
    rates = {s["prompt_id"]: s["pass_rate"] for s in pq.read_table(run / "corpus/scores.parquet").to_pylist()}
    ordered = sorted(rates.values(), reverse=True)
    lines = (run / "on_policy/metrics.jsonl").read_text().splitlines()
    expected = [json.loads(line)["expected_reward"] for line in lines]
    assert expected == pytest.approx([sum(ordered[i : i + 4]) / 4 for i in range(0, 16, 4)])
