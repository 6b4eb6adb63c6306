"""Checkpoints: a run resumed after a kill, an interrupt or damage equals the uninterrupted run."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import documents_of, llama

from stillhouse.distill.students.lora import prepare_lora
from stillhouse.distill.training.checkpoint import CheckpointManager, generator_states, restore_generators
from stillhouse.distill.training.loop import train
from stillhouse.distill.training.tracking import MetricsLog
from stillhouse.errors import CheckpointError
from stillhouse.recipe import Lora, Objective, Train

DOCUMENTS = documents_of((12, 5, 9, 20, 7, 7, 3, 16))
SETTINGS = Train(
    epochs=8, batch_tokens=40, learning_rate=3e-3, dtype="float32", checkpoint_every=4, weight_decay=0.1
)


def run(directory, *, settings=SETTINGS, documents=DOCUMENTS, objective=None, model=None, seed=5):
    """Trains a tiny llama with dropout (so that the generators matter); the student and the result."""
    model = model or llama(attention_dropout=0.2)
    objective = objective or Objective(kind="cross_entropy")
    result = train(
        model, documents, None, objective=objective, settings=settings, directory=directory, seed=seed
    )
    return model, result


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    """The run that nothing happened to."""
    return run(tmp_path_factory.mktemp("alone"))


def require_same(model, result, left_alone, directory):
    expected_model, expected = left_alone
    for (name, ours), theirs in zip(model.named_parameters(), expected_model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert result.losses == expected.losses
    assert (result.steps, result.tokens, result.counted) == (
        expected.steps,
        expected.tokens,
        expected.counted,
    )
    written = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in written] == list(range(1, expected.steps + 1))


def checkpoints(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


def stop_after(directory, steps, monkeypatch, **options):
    """Leaves the directory as a run that died right after ``steps`` steps left it."""

    class Killed(Exception):
        pass

    log = MetricsLog.log

    def log_and_die(self, step, values):
        log(self, step, values)
        if step == steps:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "log", log_and_die)
        with pytest.raises(Killed):
            run(directory, **options)


CHILD = """
import sys
import torch
sys.path[:0] = {tests!r}
torch.set_num_threads({threads})
from pathlib import Path
from test_checkpoint import run
run(Path({directory!r}))
"""


def test_a_killed_run_ends_like_the_one_left_alone(tmp_path, left_alone):
    kill_at = random.SystemRandom().randrange(1, left_alone[1].steps)
    print(f"killed when {kill_at} steps were written")  # pytest shows it when the test fails
    code = CHILD.format(
        tests=[str(Path(__file__).parents[n]) for n in (0, 1)],
        threads=torch.get_num_threads(),
        directory=str(tmp_path),
    )
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or len(metrics.read_bytes().splitlines()) < kill_at:
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    model, result = run(tmp_path)
    require_same(model, result, left_alone, tmp_path)


@pytest.mark.parametrize("steps", [1, 4, 6, 11])
def test_a_run_resumed_after_any_step_ends_like_the_one_left_alone(tmp_path, left_alone, steps, monkeypatch):
    stop_after(tmp_path, steps, monkeypatch)
    model, result = run(tmp_path)
    require_same(model, result, left_alone, tmp_path)


def test_adapters_with_dropout_resume_as_well(tmp_path, monkeypatch):
    def adapted():
        return prepare_lora(llama(), Lora(rank=2, dropout=0.3, targets=("q_proj", "down_proj")), seed=1)

    alone = run(tmp_path / "alone", model=adapted())
    stop_after(tmp_path / "resumed", 6, monkeypatch, model=adapted())
    model, result = run(tmp_path / "resumed", model=adapted())
    require_same(model, result, alone, tmp_path / "resumed")


def test_a_finished_run_is_not_run_again(tmp_path, left_alone):
    run(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    model, result = run(tmp_path)
    require_same(model, result, left_alone, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_an_interrupt_leaves_a_checkpoint_of_the_last_finished_step(tmp_path, left_alone, capsys):
    model = llama(attention_dropout=0.2)
    metrics = tmp_path / "metrics.jsonl"

    def press(*_):  # in the middle of the seventh step's pass
        if metrics.exists() and len(metrics.read_bytes().splitlines()) == 6:
            signal.raise_signal(signal.SIGINT)

    handle = model.model.layers[1].register_forward_hook(press)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, model=model)
    handle.remove()
    assert checkpoints(tmp_path)[-1] == "step-00000006"
    assert "stopped after step 6" in capsys.readouterr().err
    resumed, result = run(tmp_path)
    require_same(resumed, result, left_alone, tmp_path)


def damage_truncate(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def damage_bit(path: Path) -> None:
    file = path / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def damage_state(path: Path) -> None:
    (path / "state.json").write_text('{"identity": {')


def damage_missing(path: Path) -> None:
    (path / "optimizer.safetensors").unlink()


@pytest.mark.parametrize("damage", [damage_truncate, damage_bit, damage_state, damage_missing])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, left_alone, damage, monkeypatch, capsys):
    stop_after(tmp_path, 10, monkeypatch)
    assert checkpoints(tmp_path) == ["step-00000004", "step-00000008"]
    damage(tmp_path / "checkpoints" / "step-00000008")
    model, result = run(tmp_path)
    require_same(model, result, left_alone, tmp_path)
    said = capsys.readouterr().err
    assert "step-00000008 is damaged" in said
    assert "resuming from step-00000004" in said


def test_when_every_checkpoint_is_damaged_nothing_is_thrown_away(tmp_path, monkeypatch):
    stop_after(tmp_path, 10, monkeypatch)
    for path in (tmp_path / "checkpoints").iterdir():
        damage_truncate(path)
    with pytest.raises(CheckpointError, match=r"no checkpoint .* is intact"):
        run(tmp_path)
    assert len(checkpoints(tmp_path)) == 2


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"settings": replace(SETTINGS, learning_rate=1e-3)}, "train.learning_rate was 0.003, is 0.001"),
        ({"settings": replace(SETTINGS, betas=(0.9, 0.99))}, "train.betas"),
        ({"objective": Objective(kind="cross_entropy", loss_on="all")}, "objective.loss_on"),
        ({"documents": documents_of((12, 5, 9, 20, 7, 7, 3, 16), seed=9)}, "documents"),
        ({"model": llama(attention_dropout=0.2, initializer_range=0.3)}, "weights at the start"),
        ({"seed": 6}, "seed was 5, is 6"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, monkeypatch, changes, named):
    stop_after(tmp_path, 5, monkeypatch)
    with pytest.raises(CheckpointError) as caught:
        run(tmp_path, **changes)
    assert named in str(caught.value)
    assert checkpoints(tmp_path) == ["step-00000004"]


def test_how_often_is_saved_and_where_it_is_shown_may_change(tmp_path, left_alone, monkeypatch):
    stop_after(tmp_path, 5, monkeypatch)
    model, result = run(tmp_path, settings=replace(SETTINGS, checkpoint_every=100))
    require_same(model, result, left_alone, tmp_path)


def test_another_number_of_threads_is_said(tmp_path, monkeypatch, capsys):
    stop_after(tmp_path, 5, monkeypatch)
    state = tmp_path / "checkpoints" / "step-00000004" / "state.json"
    saved = json.loads(state.read_text())
    saved["facts"]["threads"] = 64
    state.write_text(json.dumps(saved))
    run(tmp_path)
    assert f"threads was 64, is {torch.get_num_threads()}" in capsys.readouterr().err


def test_only_the_last_two_are_kept_and_half_written_ones_go(tmp_path):
    store = CheckpointManager(tmp_path, {})
    (tmp_path / ".step-00000009.0123abcd.tmp").mkdir()
    for step in (1, 2, 30):
        store.save(step, {"model": {"w": torch.full((3,), float(step))}}, {"steps": step}, {})
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000002", "step-00000030"]
    saved = store.load()
    assert saved is not None
    assert saved.state == {"steps": 30}
    assert torch.equal(saved.tensors["model"]["w"], torch.full((3,), 30.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000030"]


def test_without_a_checkpoint_there_is_none(tmp_path):
    assert CheckpointManager(tmp_path / "nowhere", {}).load() is None


def test_generators_go_on_where_they_were():
    states = json.loads(json.dumps(generator_states()))
    drawn = random.random(), np.random.random(), np.random.standard_normal(), torch.rand(1).item()
    restore_generators(states)
    assert (random.random(), np.random.random(), np.random.standard_normal(), torch.rand(1).item()) == drawn


FULL_DISK = """
import os
from pathlib import Path
import torch
from stillhouse.distill.students.lora import prepare_lora
from stillhouse.distill.training.checkpoint import CheckpointManager
from stillhouse.errors import StorageError
store = CheckpointManager(Path({directory!r}), {{}})
store.save(1, {{"model": {{"w": torch.ones(10_000)}}}}, {{}}, {{}})
try:
    store.save(2, {{"model": {{"w": torch.ones(1_000_000)}}}}, {{}}, {{}})
except StorageError as error:
    saved = store.load()
    assert torch.equal(saved.tensors["model"]["w"], torch.ones(10_000))
    print(os.listdir({directory!r}), error)
"""


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    mount = f"mount -t tmpfs -o size=200k tmpfs {tmp_path}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    code = textwrap.dedent(FULL_DISK.format(directory=str(tmp_path)))
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$0" -c "$1"', sys.executable, code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['step-00000001'] the disk is full")
    assert "step-00000002" in done.stdout
