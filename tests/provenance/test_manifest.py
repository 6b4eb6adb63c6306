"""The manifest: finished stages are not repeated, and the file is valid at every moment."""

import hashlib
import json
import os
from datetime import UTC, datetime, timedelta, timezone

import pytest

from stillhouse.errors import IntegrityError, StorageError
from stillhouse.provenance import Manifest, recipe_section_hash
from stillhouse.recipe import Prompts, Recipe, Teacher, Train

INPUTS = {"recipe.teacher": "a" * 64, "stillhouse": "0.1.0"}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "0.parquet").write_bytes(b"answers")
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    return tmp_path


def outputs(run):
    return [run / "corpus" / "0.parquet", run / "metrics.jsonl"]


def test_a_new_run_has_an_empty_manifest(tmp_path):
    manifest = Manifest.load(tmp_path)
    assert not manifest.finished("collect", {})
    assert manifest.facts("collect") == {}


def test_a_recorded_stage_is_finished_also_for_the_next_process(run):
    Manifest.load(run).record("collect", INPUTS, outputs(run), {"asked": 3, "by": {"x": [1, None]}})
    manifest = Manifest.load(run)
    assert manifest.finished("collect", INPUTS)
    assert manifest.facts("collect") == {"asked": 3, "by": {"x": [1, None]}}


def test_the_file_says_what_was_made_with_what(run):
    started = datetime(2026, 11, 23, 9, 0, tzinfo=timezone(timedelta(hours=1)))
    Manifest.load(run).record("collect", INPUTS, outputs(run), {}, started=started)
    data = json.loads((run / "manifest.json").read_text())
    stage = data["stages"]["collect"]
    assert data["schema_version"] == 1
    assert stage["inputs"] == INPUTS
    assert stage["outputs"] == [
        {"path": "corpus/0.parquet", "sha256": hashlib.sha256(b"answers").hexdigest(), "size": 7},
        {"path": "metrics.jsonl", "sha256": hashlib.sha256(b"").hexdigest(), "size": 0},
    ]
    assert stage["started"] == "2026-11-23T08:00:00+00:00"
    assert datetime.fromisoformat(stage["finished"]) <= datetime.now(UTC)
    assert {"stillhouse", "python", "torch", "transformers", "platform"} <= set(stage["versions"])


@pytest.mark.parametrize(
    "inputs",
    [{}, {"recipe.teacher": "a" * 64}, INPUTS | {"recipe.teacher": "b" * 64}, INPUTS | {"seed": "1"}],
)
def test_other_inputs_mean_doing_it_again(run, inputs):
    manifest = Manifest.load(run)
    manifest.record("collect", INPUTS, outputs(run), {})
    assert not manifest.finished("collect", inputs)


@pytest.mark.parametrize("harm", ["missing", "same size", "longer", "a directory"])
def test_a_changed_output_means_doing_it_again(run, harm):
    manifest = Manifest.load(run)
    manifest.record("collect", INPUTS, outputs(run), {})
    path = run / "corpus" / "0.parquet"
    before = path.stat()
    path.unlink()
    if harm == "same size":
        path.write_bytes(b"ANSWERS")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif harm == "longer":
        path.write_bytes(b"answers ")
    elif harm == "a directory":
        path.mkdir()
    assert not manifest.finished("collect", INPUTS)


def test_a_stage_may_leave_no_files(run):
    manifest = Manifest.load(run)
    manifest.record("terms", INPUTS, [], {"key": "mit"})
    assert Manifest.load(run).finished("terms", INPUTS)


def test_the_digest_follows_the_content_and_nothing_else(run):
    manifest = Manifest.load(run)
    manifest.record("collect", INPUTS, outputs(run), {"seconds": 1.0})
    first = manifest.digest("collect")
    manifest.record("collect", {}, reversed(outputs(run)), {"seconds": 2.0})
    assert manifest.digest("collect") == first
    (run / "metrics.jsonl").write_bytes(b"{}")
    manifest.record("collect", INPUTS, outputs(run), {})
    assert manifest.digest("collect") != first
    assert manifest.digest("never") != first


def test_a_relative_run_directory_works_from_anywhere(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    Manifest.load(run.name).record("collect", INPUTS, outputs(run), {})
    monkeypatch.chdir("/")
    assert Manifest.load(run).finished("collect", INPUTS)


def test_a_failed_save_leaves_the_old_manifest(run, monkeypatch):
    manifest = Manifest.load(run)
    manifest.record("collect", INPUTS, outputs(run), {})
    before = (run / "manifest.json").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match="disk is full"):
        manifest.record("filter", INPUTS, [], {})
    assert (run / "manifest.json").read_bytes() == before
    assert [path.name for path in run.iterdir() if path.name.endswith(".tmp")] == []


STAGE = {"inputs": {}, "outputs": [], "facts": {}, "started": None, "finished": "x", "versions": {}}


def with_output(**output):
    return json.dumps({"schema_version": 1, "stages": {"a": {**STAGE, "outputs": [output]}}})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "\udcff",
        '{"schema_version": 2, "stages": {}}',
        '{"schema_version": 1}',
        '{"schema_version": 1, "stages": []}',
        '{"schema_version": 1, "stages": {"a": {}}}',
        json.dumps({"schema_version": 1, "stages": {"a": {**STAGE, "more": 1}}}),
        with_output(path="x", sha256="y", size=-1),
        with_output(path="x", sha256="y", size="many"),
        with_output(path="../x", sha256="y", size=1),
        with_output(path="a/../../x", sha256="y", size=1),
        with_output(path="/etc/hostname", sha256="y", size=1),
        with_output(path="", sha256="y", size=1),
    ],
)
def test_what_is_no_manifest_is_refused_with_its_path(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(IntegrityError, match=r"manifest\.json") as caught:
        Manifest.load(tmp_path)
    assert caught.value.hint


def test_the_hash_of_a_section_follows_its_values():
    def recipe(**changes):
        return Recipe(name="n", teacher=Teacher(model="m"), prompts=Prompts(source="s"), **changes)

    plain, other = recipe(), recipe(train=Train(epochs=2.0))
    assert recipe_section_hash(plain, "train") != recipe_section_hash(other, "train")
    assert recipe_section_hash(plain, "teacher") == recipe_section_hash(other, "teacher")
    assert recipe_section_hash(plain, "train.max_length") == recipe_section_hash(other, "train.max_length")
    assert recipe_section_hash(plain, "train.max_length") == hashlib.sha256(b"1024").hexdigest()
    assert recipe_section_hash(plain, "name") == hashlib.sha256(b'"n"').hexdigest()


def test_a_manifest_that_is_nested_too_deeply_is_an_error(tmp_path):
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(IntegrityError, match=r"manifest\.json cannot be read"):
        Manifest.load(tmp_path)
