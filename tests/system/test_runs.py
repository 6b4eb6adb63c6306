"""The real command on a small real model: whole runs, killed runs, tampered runs, refused runs."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import make_tiny_teacher
from still_command import StillProcess, still

from stillhouse import pipeline
from stillhouse.corpus import Corpus
from stillhouse.hashing import sha256_file
from stillhouse.pages.fact_names import FACT_NAMES, TIMES
from stillhouse.recipe.load import load_recipe

pytestmark = pytest.mark.slow


def write_recipe(place: Path, model: Path | str, prompts: Path, /, **changes) -> Path:
    recipe = {
        "name": "small",
        "teacher": {"model": str(model), "terms": "apache-2.0"},
        "prompts": {"source": str(prompts), "held_out": 8},
        "collect": {"max_tokens": 12},
        "filter": {"truncated": False},
        "student": {"init": "prune", "layers": 2},
        "objective": {"kind": "forward_kl", "loss_on": "all"},
        "train": {
            "epochs": 4,
            "batch_tokens": 128,
            "micro_tokens": 128,
            "max_length": 64,
            "learning_rate": 3e-3,
            "dtype": "float32",
            "checkpoint_every": 5,
        },
        "evaluate": {"prompts": 2, "max_tokens": 8},
    }
    for key, value in changes.items():
        section, _, field = key.partition("__")
        if field:
            recipe[section][field] = value
        else:
            recipe[section] = value
    path = place / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_teacher, questions) -> Path:
    """A directory in which a whole run has been made once; `seconds` says how long it took."""
    place = tmp_path_factory.mktemp("run")
    process = StillProcess("run", write_recipe(place, tiny_teacher, questions), cwd=place)
    started = time.monotonic()
    assert process.wait(240) == 0, process.stderr
    (place / "seconds").write_text(str(time.monotonic() - started))
    assert "student" in process.stdout
    return place


def weights(run: Path) -> str:
    return sha256_file(run / "student" / "model.safetensors")


def test_a_run_leaves_all_that_it_promises(finished):
    run = finished / "runs" / "small"
    for name in ("recipe.yaml", "metrics.jsonl", "report.json", "report.html", "manifest.json"):
        assert (run / name).stat().st_size > 0, name
    report = json.loads((run / "report.json").read_text())
    assert [model["key"] for model in report["models"]] == ["teacher", "before", "student", "control"]
    kl = {model["key"]: model["kl"]["value"] for model in report["models"]}
    assert abs(kl["teacher"]) < 1e-6
    assert kl["student"] < kl["before"]
    assert "<script" not in (run / "report.html").read_text()
    card = (run / "student" / "README.md").read_text()
    assert card.startswith("---\n")
    assert report["verdict"]["headline"] in card.replace("\\", "")
    assert "Student − before training: KL" in card


def test_a_report_shows_each_stages_processor_time_and_no_raw_key(finished):
    run = finished / "runs" / "small"
    report = json.loads((run / "report.json").read_text())
    manifest = json.loads((run / "manifest.json").read_text())
    for stage in report["stages"]:
        assert stage["cpu_seconds"] == manifest["stages"][stage["name"]]["facts"]["cpu_seconds"]
    sections = ("corpus", "student_facts", "terms", "lineage", "environment")
    assert {key for section in sections for key in report[section]} - FACT_NAMES.keys() == {"influence"}
    assert not {key for section in sections for key in report[section]} & set(TIMES)


def test_the_student_loads_in_transformers_alone(finished):
    code = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
turns = [{"role": "user", "content": "the still"}]
text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
asked = tokenizer(text, return_tensors="pt")
said = model.generate(**asked, max_new_tokens=5, do_sample=False)
assert said.shape[1] > asked["input_ids"].shape[1]
assert model.config.num_hidden_layers == 2
assert "stillhouse" not in sys.modules
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(finished / "runs/small/student")], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_running_again_does_nothing_twice_and_says_so(finished):
    before = {p: p.stat().st_mtime_ns for p in (finished / "runs/small/student").iterdir()}
    result = still("run", "recipe.yaml", cwd=finished)
    assert result.returncode == 0, result.stderr
    assert "unchanged, skipped" in result.stderr
    assert before == {p: p.stat().st_mtime_ns for p in (finished / "runs/small/student").iterdir()}


def test_the_resolved_recipe_gives_the_same_student_bit_for_bit(finished):
    result = still("run", "runs/small/recipe.yaml", "--out", "again", cwd=finished)
    assert result.returncode == 0, result.stderr
    assert weights(finished / "again") == weights(finished / "runs/small")
    other = still("run", "runs/small/recipe.yaml", "--out", "other", "--seed", "1", cwd=finished)
    assert other.returncode == 0, other.stderr
    assert weights(finished / "other") != weights(finished / "runs/small")


def test_another_recipe_does_not_overwrite(finished):
    result = still("run", "recipe.yaml", "--train.epochs", "2", cwd=finished)
    assert result.returncode == 2
    assert "train.epochs" in result.stderr
    assert "--restart" in result.stderr


def test_another_evaluation_measures_again_and_trains_nothing(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished / "runs/small", run)
    before = weights(run)
    changes = ["--evaluate.prompts", "1", "--train.checkpoint_every", "7", "--collect.concurrency", "3"]
    result = still("run", finished / "recipe.yaml", "--out", run, *changes, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "evaluate.prompts: 2 before, 1 now" in result.stderr
    for stage in ("collect", "train", "control"):
        assert f"{stage}: unchanged, skipped" in result.stderr
    assert weights(run) == before
    assert len(json.loads((run / "report.json").read_text())["answers"]) == 1
    assert still("verify", run, cwd=tmp_path).returncode == 0


def test_until_training_begins_the_filter_may_change(tmp_path, tiny_teacher, questions):
    """Also after targets were cached: those of the old exchanges are replaced."""
    recipe = write_recipe(tmp_path, tiny_teacher, questions, evaluate__control=False, train__epochs=1)
    pipeline.run(load_recipe(recipe), tmp_path / "run", until="targets")
    answers = {path: sha256_file(path) for path in (tmp_path / "run/corpus/collected").glob("shard-*")}
    lengths = sorted(
        len(row["messages"][-1]["content"]) for row in Corpus(tmp_path / "run/corpus/kept").rows("train")
    )
    assert lengths[0] < lengths[-1], "the shortest answer can be filtered out"
    shortest = ["--filter.min_chars", str(lengths[0] + 1)]
    result = still("run", recipe, *shortest, "--out", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "collect: unchanged, skipped" in result.stderr
    assert "targets: the exchanges have changed" in result.stderr
    assert answers == {path: sha256_file(path) for path in answers}
    assert still("verify", "run", cwd=tmp_path).returncode == 0
    again = still("run", recipe, "--out", "run", cwd=tmp_path)
    assert again.returncode == 2
    assert "filter.min_chars" in again.stderr


def test_verify_finds_what_was_changed(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished / "runs/small", run)
    assert still("verify", run, cwd=tmp_path).returncode == 0
    target = run / "student" / "model.safetensors"
    content = bytearray(target.read_bytes())
    content[-1] ^= 1
    target.write_bytes(content)
    result = still("verify", run, cwd=tmp_path)
    assert result.returncode == 1
    assert "student/model.safetensors" in result.stdout + result.stderr


def test_killed_at_any_moment_it_ends_bit_identical(finished, tmp_path, tiny_teacher, questions):
    """kill -9 at eight random moments over the whole run; then one run to the end."""
    rng = random.Random(5)
    write_recipe(tmp_path, tiny_teacher, questions)
    seconds = float((finished / "seconds").read_text())
    for _ in range(8):
        process = StillProcess("run", "recipe.yaml", cwd=tmp_path)
        time.sleep(rng.uniform(0.05, 1.0) * seconds)
        process.kill()
        process.wait()
    result = still("run", "recipe.yaml", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "runs" / "small"
    assert weights(run) == weights(finished / "runs" / "small")
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert still("verify", run, cwd=tmp_path).returncode == 0


def test_forbidden_terms_stop_with_status_3_before_anything_is_written(tmp_path, tiny_teacher, questions):
    recipe = write_recipe(tmp_path, tiny_teacher, questions, teacher__terms="openai", purpose="competing")
    result = still("run", recipe, cwd=tmp_path)
    assert result.returncode == 3
    assert "OpenAI" in result.stderr
    assert not (tmp_path / "runs/small/corpus").exists()


def test_unknown_terms_need_a_reason_which_is_kept(tmp_path, questions):
    teacher = make_tiny_teacher(tmp_path / "nameless", layers=2)
    recipe = write_recipe(tmp_path, teacher, questions, student__layers=1, train__epochs=1)
    content = yaml.safe_load(recipe.read_text())
    del content["teacher"]["terms"]
    recipe.write_text(yaml.safe_dump(content))
    assert still("run", recipe, cwd=tmp_path).returncode == 3
    result = still("run", recipe, "--accept-terms", "I made this model myself.", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "runs/small"
    assert "I made this model myself." in (run / "student/README.md").read_text()
    assert "I made this model myself." in (run / "manifest.json").read_text()


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"prompts__source": "nowhere.jsonl"}, 1, "nowhere.jsonl"),
        ({"teacher__model": "embeded:smollm2"}, 1, "embedded:smollm2"),
        ({"train__learning_rat": 1e-3}, 2, "learning_rate"),
        ({"objective__kind": "forwardkl"}, 2, "forward_kl"),
        ({"train__batch_tokens": "many"}, 2, "train.batch_tokens"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, tiny_teacher, questions, changes, status, said):
    result = still("run", write_recipe(tmp_path, tiny_teacher, questions, **changes), cwd=tmp_path)
    assert result.returncode == status, result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_empty_and_unreadable_prompts(tmp_path, tiny_teacher):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    result = still("run", write_recipe(tmp_path, tiny_teacher, empty), cwd=tmp_path)
    assert result.returncode == 1
    assert "empty.jsonl" in result.stderr
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and then nothing sensible")
    result = still("run", write_recipe(tmp_path, tiny_teacher, broken), cwd=tmp_path)
    assert result.returncode == 1
    assert "broken.parquet" in result.stderr
    assert "Traceback" not in result.stderr


def test_control_c_stops_with_130_and_the_run_goes_on_later(tmp_path, tiny_teacher, questions):
    recipe = write_recipe(tmp_path, tiny_teacher, questions, train__epochs=400, evaluate__control=False)
    process = StillProcess("run", recipe, cwd=tmp_path)
    metrics = tmp_path / "runs/small/metrics.jsonl"
    deadline = time.time() + 120
    while time.time() < deadline and not (metrics.exists() and metrics.stat().st_size > 500):
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert any((tmp_path / "runs/small/checkpoints").iterdir())


def test_a_dry_run_loads_no_weights_and_writes_nothing(tmp_path, tiny_teacher, questions):
    recipe = write_recipe(tmp_path, tiny_teacher, questions)
    hidden = tiny_teacher / "model.safetensors"
    result = still("run", recipe, "--dry-run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for word in ("collect", "train", "evaluate"):
        assert word in result.stdout
    assert hidden.exists()
    assert not (tmp_path / "runs").exists()
