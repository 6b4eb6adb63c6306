"""metrics.jsonl after kills, and the content of the trackers."""

import json
import sqlite3
import sys

import pytest

from stillhouse.distill.training.tracking import MetricsLog, open_tracker
from stillhouse.errors import MissingExtraError


def test_lines_past_the_checkpoint_and_torn_ones_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = [json.dumps({"step": step, "loss": 1 / step}) for step in (1, 2, 3)]
    path.write_text("\n".join([*whole, '{"step": 4, "lo']))
    metrics = MetricsLog(path, steps_done=2)
    assert metrics.losses == [1.0, 0.5]
    metrics.log(3, {"loss": 0.25})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": 0.25},
    ]
    metrics.close()
    assert metrics.losses == [1.0, 0.5, 0.25]


def test_a_line_is_in_the_file_before_the_next_step(tmp_path):
    metrics = MetricsLog(tmp_path / "metrics.jsonl", steps_done=0)
    metrics.log(1, {"loss": 2.0})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'
    metrics.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's own protocol buffers
def test_tensorboard_reads_what_was_logged(tmp_path):
    tracker = open_tracker("tensorboard", tmp_path, "train")
    metrics = MetricsLog(tmp_path / "metrics.jsonl", steps_done=0, trackers=[tracker])
    for step, loss in enumerate((3.0, 2.0, 1.5), 1):
        metrics.log(step, {"loss": loss, "learning_rate": 0.5})
    metrics.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard" / "train"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 3.0), (2, 2.0), (3, 1.5)]
    assert sorted(events.Tags()["scalars"]) == ["learning_rate", "loss"]


def test_trackio_stores_what_was_logged_and_keeps_stdout_clean(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    pytest.importorskip("trackio")
    tracker = open_tracker("trackio", tmp_path / "my-run", "train")
    for step, loss in enumerate((3.0, 2.0), 1):
        tracker.log(step, {"loss": loss})
    tracker.close()
    assert capsys.readouterr().out == ""
    with sqlite3.connect(next((tmp_path / "store").glob("*.db"))) as database:
        rows = database.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert [(run, step, json.loads(values)["loss"]) for run, step, values in rows] == [
        ("train", 1, 3.0),
        ("train", 2, 2.0),
    ]


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_a_tracker_that_is_not_installed_says_how_to_install_it(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError) as caught:
        open_tracker(name, tmp_path, "train")
    assert name in str(caught.value)
    assert "stillhouse[track]" in (caught.value.hint or "")
