"""Other ways to a student, with the real command: LoRA, another architecture, an API that misbehaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.dataset
import pytest
from conftest import make_tiny_teacher
from misbehaving_server import Teacher, serving
from still_command import StillProcess, still
from test_runs import write_recipe

pytestmark = pytest.mark.slow


def report(place: Path) -> dict:
    return json.loads((place / "runs/small/report.json").read_text())


def divergence(found: dict) -> dict[str, float]:
    return {model["key"]: model["kl"]["value"] for model in found["models"]}


def api_recipe(place: Path, url: str, questions: Path, student: Path, **changes) -> Path:
    """The student learns the text of the teacher at ``url``."""
    return write_recipe(
        place,
        f"api:{url}#misbehaving-1",
        questions,
        student={"init": "pretrained", "model": str(student)},
        objective={"kind": "cross_entropy"},
        accept_terms="A server of the test.",
        **changes,
    )


def test_lora_from_top_k_targets(tmp_path, tiny_teacher, questions):
    recipe = write_recipe(
        tmp_path,
        tiny_teacher,
        questions,
        student={"init": "prune", "layers": 3, "lora": {"rank": 4}},
        objective={"kind": "skew_forward_kl", "targets": "topk", "top_k": 16, "loss_on": "all"},
    )
    result = still("run", recipe, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    metrics = (tmp_path / "runs/small/metrics.jsonl").read_text()
    losses = [json.loads(line)["loss"] for line in metrics.splitlines()]
    assert sum(losses[-8:]) < sum(losses[:8])
    files = {path.name for path in (tmp_path / "runs/small/student").iterdir()}
    assert "model.safetensors" in files
    assert not any("adapter" in name for name in files)


def test_a_random_qwen3_student_with_a_padded_vocabulary(tmp_path, tiny_teacher, questions):
    """The student's vocabulary is padded to 384, the teacher's has 320: most peers refuse or crash."""
    config = {
        "model_type": "qwen3",
        "vocab_size": 384,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    recipe = write_recipe(
        tmp_path,
        tiny_teacher,
        questions,
        student={"init": "scratch", "config": config},
        objective={"kind": "jsd", "beta": 0.3, "loss_on": "all", "targets": "online"},
    )
    result = still("run", recipe, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    kl = divergence(report(tmp_path))
    assert kl["student"] < kl["before"]
    saved = json.loads((tmp_path / "runs/small/student/config.json").read_text())
    assert saved["model_type"] == "qwen3"
    assert saved["vocab_size"] == 384


def test_another_tokenizer_is_refused_for_distributions_and_taken_for_text(tmp_path, tiny_teacher, questions):
    other = make_tiny_teacher(tmp_path / "other", seed=3)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[50:52]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    student = {"init": "pretrained", "model": str(other)}
    recipe = write_recipe(tmp_path, tiny_teacher, questions, student=student)
    result = still("run", recipe, cwd=tmp_path)
    assert result.returncode == 1
    assert "tokenizer" in result.stderr
    assert "cross_entropy" in result.stderr
    assert "objective.align: spans" in result.stderr
    result = still("run", recipe, "--objective.kind", "cross_entropy", "--out", "text", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_distributions_of_a_teacher_with_another_tokenizer(tmp_path, tiny_teacher, questions):
    """A scratch student with a vocabulary made from the corpus: over spans, and by rank."""
    recipe = write_recipe(
        tmp_path,
        tiny_teacher,
        questions,
        student={
            "init": "scratch",
            "vocabulary": 512,
            "config": {
                "model_type": "llama",
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
            },
        },
        objective={"kind": "forward_kl", "align": "spans"},
    )
    assert still("plan", recipe, cwd=tmp_path).returncode == 0
    result = still("run", recipe, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "runs/small"
    facts = json.loads((run / "manifest.json").read_text())["stages"]["targets"]["facts"]
    assert facts["spans"] > 100
    assert facts["aligned_share"] > 0.9
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])
    # Not its perplexity: the random teacher's bytes are no text, and it finds what was kept of them unlikely.
    assert [model["key"] for model in report(tmp_path)["models"]] == ["before", "student", "control"]
    assert "spans" in (run / "student/README.md").read_text()
    ranked = ("--objective.kind", "uld", "--objective.align", "tokens", "--objective.targets", "online")
    result = still("run", recipe, *ranked, "--out", "ranked", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_a_teacher_behind_an_api_that_misbehaves(tmp_path, tiny_teacher, questions):
    """A third of all tries fails, each in another way; every prompt is answered once and learned from."""
    log = tmp_path / "served.jsonl"
    with serving(Teacher(faults=0.3, kinds=("429", "500", "cut", "json", "empty"), log=log)) as url:
        prices = {"model": f"api:{url}#misbehaving-1", "price_in": 1.0, "price_out": 2.0}
        prices["system"] = "Be brief."
        recipe = api_recipe(tmp_path, url, questions, tiny_teacher, teacher=prices)
        result = still("run", recipe, cwd=tmp_path, OPENAI_API_KEY="none")
    assert result.returncode == 0, result.stderr
    rows = pyarrow.dataset.dataset(tmp_path / "runs/small/corpus/collected", format="parquet").to_table()
    assert len(rows) == len(set(rows["id"].to_pylist())) == 40
    outcomes = [json.loads(line)["outcome"] for line in log.read_text().splitlines()]
    assert len([outcome for outcome in outcomes if outcome == "ok"]) >= 40
    assert len(outcomes) > 40
    found = report(tmp_path)
    assert [model["key"] for model in found["models"]] == ["before", "student"]
    assert found["models"][1]["perplexity"]["value"] < found["models"][0]["perplexity"]["value"]
    # The teacher is not measured, and stands beside the students with its recorded words.
    said = {row["messages"][1]["content"]: row["messages"][2]["content"] for row in rows.to_pylist()}
    for item in found["answers"]:
        assert [message["role"] for message in item["messages"]] == ["system", "user"]
        assert set(item["replies"]) == {"teacher", "before", "student"}
        assert item["replies"]["teacher"] == said[item["prompt"]]
    assert "as recorded" in (tmp_path / "runs/small/report.html").read_text()


def test_control_c_while_the_teacher_answers(tmp_path, tiny_teacher, questions):
    """Ctrl-C leaves at once with 130, though answers are under way; the next run asks only for the rest."""
    log = tmp_path / "served.jsonl"
    with serving(Teacher(delay_s=1.0, log=log)) as url:
        recipe = api_recipe(tmp_path, url, questions, tiny_teacher, collect={"concurrency": 4})
        process = StillProcess("run", recipe, cwd=tmp_path, OPENAI_API_KEY="none")
        deadline = time.time() + 120
        while time.time() < deadline and not (log.exists() and len(log.read_text().splitlines()) >= 6):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
        assert process.returncode == 130, stderr
        assert "Traceback" not in stderr
        answered = len(log.read_text().splitlines())
        assert 6 <= answered < 40
        result = still("run", recipe, cwd=tmp_path, OPENAI_API_KEY="none")
        assert result.returncode == 0, result.stderr
    prompts = [json.loads(line)["prompt"] for line in log.read_text().splitlines()]
    assert len(set(prompts)) == 40
    assert len(prompts) <= 40 + 8  # those under way when it was stopped, at most


def test_too_little_memory_says_so(tmp_path, tiny_teacher, questions):
    """A student of 5 GB in a process that may have 2 GB more than it begins with."""
    config = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 6}
    recipe = write_recipe(tmp_path, tiny_teacher, questions, student={"init": "scratch", "config": config})
    limited = """
import resource, sys, torch, transformers
from stillhouse.cli import entry
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 10**9,) * 2)
sys.argv = ["still", "run", sys.argv[1]]
entry()
"""
    result = subprocess.run(
        [sys.executable, "-c", limited, str(recipe)], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 1, result.stderr
    assert "does not fit in memory" in result.stderr
    assert "Traceback" not in result.stderr
    # With room the same command goes on where it stopped.
    assert (tmp_path / "runs/small/corpus/collected").exists()


def test_a_wrong_key_stops_at_once(tmp_path, tiny_teacher, questions):
    with serving(Teacher(faults=1.0, kinds=("401",), most_faults=1000)) as url:
        recipe = api_recipe(tmp_path, url, questions, tiny_teacher)
        result = still("run", recipe, cwd=tmp_path, OPENAI_API_KEY="wrong")
    assert result.returncode == 1
    assert "refuses the key" in result.stderr


def test_a_teacher_that_says_nothing(tmp_path, tiny_teacher, questions):
    with serving(Teacher(faults=1.0, kinds=("silent",), most_faults=1000)) as url:
        recipe = api_recipe(tmp_path, url, questions, tiny_teacher)
        result = still("run", recipe, cwd=tmp_path, OPENAI_API_KEY="none")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "answer" in result.stderr


def test_a_budget_stops_collecting_and_the_run_goes_on_with_what_there_is(tmp_path, tiny_teacher, questions):
    recipe = write_recipe(
        tmp_path, tiny_teacher, questions, collect={"max_tokens": 12, "max_total_tokens": 500}
    )
    result = still("run", recipe, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "collecting stopped at" in result.stderr
    assert report(tmp_path)["held_out"]["documents"] > 0


def test_prompts_longer_than_the_context_are_set_aside_with_their_reason(tmp_path, tiny_teacher, questions):
    long = tmp_path / "long.jsonl"
    lines = questions.read_text().splitlines()
    long.write_text("\n".join([*lines, json.dumps({"prompt": "again " * 3000})]) + "\n")
    result = still("run", write_recipe(tmp_path, tiny_teacher, long), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "of 41 requests 1 failed" in " ".join(result.stderr.split())


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_loses_nothing(tmp_path, tiny_teacher, questions):
    """A disk of 1.5 MB is full in mid-run; with room the same command ends it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        recipe = write_recipe(tmp_path, tiny_teacher, questions)
        result = still("run", recipe, "--out", disk / "run", cwd=tmp_path)
        assert result.returncode == 1
        assert "disk is full" in result.stderr
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        result = still("run", recipe, "--out", disk / "run", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert still("verify", disk / "run", cwd=tmp_path).returncode == 0
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_place_that_cannot_be_written(tmp_path, tiny_teacher, questions):
    recipe = write_recipe(tmp_path, tiny_teacher, questions)
    result = still("run", recipe, "--out", "/proc/nowhere", cwd=tmp_path)
    assert result.returncode == 1
    assert "/proc/nowhere" in result.stderr
    assert "Traceback" not in result.stderr


def test_json_output_is_json_alone(tmp_path, tiny_teacher, questions):
    recipe = write_recipe(tmp_path, tiny_teacher, questions)
    result = still("plan", recipe, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["stages"]


ON_POLICY = {"rounds": 12, "prompts": 4, "samples": 2, "max_tokens": 12}


def test_a_student_goes_on_from_the_corpus_to_its_own_samples(tmp_path, tiny_teacher, questions):
    """Offline, then on-policy; killed in the middle of its rounds, and bit for bit the same in the end."""
    recipe = write_recipe(
        tmp_path,
        tiny_teacher,
        questions,
        student={"init": "pretrained", "model": str(make_tiny_teacher(tmp_path / "other", seed=5))},
        objective={"kind": "forward_kl", "loss_on": "assistant"},
        train__epochs=1,
        on_policy=ON_POLICY,
    )
    result = still("run", recipe, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "runs/small"
    found = report(tmp_path)
    assert [model["key"] for model in found["models"]] == [
        "teacher",
        "before",
        "offline",
        "student",
        "control",
    ]
    kl = divergence(found)
    assert kl["student"] < kl["offline"] < kl["before"]
    rounds = [json.loads(line) for line in (run / "on_policy/metrics.jsonl").read_text().splitlines()]
    assert len(rounds) == 12
    assert sum(r["teacher"] for r in rounds[-4:]) < sum(r["teacher"] for r in rounds[:4])
    tokens = [point["tokens"] for point in found["training"]["offline"]]
    assert tokens == sorted(tokens)
    assert tokens[-1] == found["stages"][4]["tokens"]
    assert still("verify", run, cwd=tmp_path).returncode == 0

    again = ["run", recipe, "--out", "again", "--train.checkpoint_every", "5"]
    process = StillProcess(*again, cwd=tmp_path)
    metrics = tmp_path / "again/on_policy/metrics.jsonl"
    deadline = time.time() + 120
    while time.time() < deadline and not (metrics.exists() and len(metrics.read_text().splitlines()) >= 7):
        time.sleep(0.02)
    process.kill()
    process.wait()
    result = still(*again, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    same = [(place / "student/model.safetensors").read_bytes() for place in (run, tmp_path / "again")]
    assert same[0] == same[1]


def test_on_policy_alone_asks_the_teacher_for_the_held_out_answers_only(tmp_path, tiny_teacher, questions):
    recipe = write_recipe(
        tmp_path,
        tiny_teacher,
        questions,
        student={"init": "pretrained", "model": str(make_tiny_teacher(tmp_path / "other", seed=5))},
        objective={"kind": "jsd", "beta": 0.5},
        train__epochs=0,
        on_policy=ON_POLICY,
    )
    result = still("run", recipe, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = pyarrow.dataset.dataset(tmp_path / "runs/small/corpus/collected", format="parquet").to_table()
    assert set(rows["split"].to_pylist()) == {"held_out"}
    kl = divergence(report(tmp_path))
    assert list(kl) == ["teacher", "before", "student"]
    assert kl["student"] < kl["before"]


def test_a_reward_of_ones_own_teaches_the_student(tmp_path, tiny_teacher, questions):
    """Reinforcement alone: no answer of the teacher's is learned from, and the function's reward rises."""
    (tmp_path / "rewards.py").write_text(
        "def vowels(row):\n"
        "    text = row['messages'][-1]['content']\n"
        "    return sum(c in 'aeiou' for c in text) / max(1, len(text))\n"
    )
    recipe = write_recipe(
        tmp_path,
        tiny_teacher,
        questions,
        student={"init": "pretrained", "model": str(tiny_teacher)},
        objective={"kind": "cross_entropy"},
        verifiers=[{"kind": "function", "function": "rewards:vowels"}],
        train__epochs=0,
        on_policy=ON_POLICY
        | {"rounds": 25, "samples": 8, "teacher": 0, "reward": 1, "policy": {"normalise": "std"}},
    )
    result = still("run", recipe, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "runs/small"
    lines = (run / "on_policy/metrics.jsonl").read_text().splitlines()
    rewards = [json.loads(line)["reward"] for line in lines]
    assert sum(rewards[-5:]) > 1.5 * sum(rewards[:5])
    assert "mean reward" in (run / "report.html").read_text()
    facts = json.loads((run / "manifest.json").read_text())["stages"]["on_policy"]["facts"]
    assert facts["verifier_failures"] == {"function": 0}


def test_rewards_without_a_verifier_are_refused_with_the_recipe(tmp_path, tiny_teacher, questions):
    recipe = write_recipe(tmp_path, tiny_teacher, questions, on_policy=ON_POLICY | {"reward": 1.0})
    result = still("run", recipe, cwd=tmp_path)
    assert result.returncode == 2
    assert "on_policy.reward: needs at least one entry in `verifiers`" in result.stderr
