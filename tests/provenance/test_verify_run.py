"""Verification: every change to a run is detected and named."""

import json
import random
import shutil

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from stillhouse.errors import IntegrityError
from stillhouse.provenance import Manifest, recipe_section_hash, verify_run
from stillhouse.recipe.load import dump_recipe, parse_recipe

RECIPE = "name: n\nteacher: {model: m}\nprompts: {source: s}\nstudent: {init: prune, layers: 2}\n"


def make_run(directory):
    """Three stages, each using the output of the one before."""
    recipe = parse_recipe(RECIPE)
    directory.mkdir()
    (directory / "recipe.yaml").write_text(dump_recipe(recipe))
    manifest = Manifest.load(directory)
    numbers = random.Random(0)
    files = {
        "collect": ["corpus/0.parquet", "corpus/1.parquet"],
        "train": ["student/model.safetensors"],
        "card": ["README.md"],
    }
    earlier = None
    for stage, names in files.items():
        for name in names:
            path = directory / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(numbers.randbytes(300))
        inputs = {"stillhouse": "0.1.0", "recipe.seed": recipe_section_hash(recipe, "seed")}
        if stage == "train":
            inputs["recipe.train"] = recipe_section_hash(recipe, "train")
        if earlier:
            inputs[f"stage.{earlier}"] = manifest.digest(earlier)
        manifest.record(stage, inputs, [directory / name for name in names], {"stage": stage})
        earlier = stage
    return directory


ALL = ["corpus/0.parquet", "corpus/1.parquet", "student/model.safetensors", "README.md"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("sound") / "run")


@pytest.fixture
def run(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "run")


def test_an_untouched_run_has_no_differences(run):
    verification = verify_run(run)
    assert verification.checked == 4
    assert verification.differences == []


def test_files_that_no_stage_recorded_are_not_looked_at(run):
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "0.bin").write_bytes(b"x")
    assert verify_run(run).differences == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(name=st.sampled_from(ALL), place=st.integers(0, 299), flip=st.integers(1, 255))
def test_every_flipped_byte_is_found(run, name, place, flip):
    path = run / name
    good = path.read_bytes()
    path.write_bytes(good[:place] + bytes([good[place] ^ flip]) + good[place + 1 :])
    try:
        verification = verify_run(run)
    finally:
        path.write_bytes(good)
    assert len(verification.differences) == 1
    assert name in verification.differences[0] and "content" in verification.differences[0]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(name=st.sampled_from(ALL), length=st.integers(0, 600).filter(lambda n: n != 300))
def test_every_other_length_is_found(run, name, length):
    path = run / name
    good = path.read_bytes()
    path.write_bytes((good + good)[:length])
    try:
        first = verify_run(run).differences[0]
    finally:
        path.write_bytes(good)
    assert name in first and f"{length} bytes instead of 300" in first


@pytest.mark.parametrize("name", ALL)
def test_a_missing_file_is_named(run, name):
    (run / name).unlink()
    assert verify_run(run).differences[0].startswith(f"{name} is missing")


def test_the_first_of_several_is_that_of_the_earliest_stage(run):
    (run / "README.md").unlink()
    (run / "corpus/1.parquet").write_bytes(b"")
    verification = verify_run(run)
    assert "corpus/1.parquet" in verification.differences[0]
    assert len(verification.differences) == 2


def test_a_stage_made_from_what_is_no_longer_there_is_named(run):
    """The file and its record were changed together; the later stage still records the old hash."""
    (run / "corpus/0.parquet").write_bytes(b"other answers")
    manifest = Manifest.load(run)
    files = [run / "corpus/0.parquet", run / "corpus/1.parquet"]
    manifest.record("collect", manifest.stages["collect"].inputs, files, {})
    assert verify_run(run).differences == [
        "stage train used other outputs of stage collect than the manifest records now"
    ]


def edit(run, change):
    data = json.loads((run / "manifest.json").read_text())
    change(data["stages"])
    (run / "manifest.json").write_text(json.dumps(data))


def test_a_stage_cut_out_of_the_chain_is_missed(run):
    edit(run, lambda stages: stages.pop("collect"))
    assert verify_run(run).differences == ["stage train used stage collect, which is not in the manifest"]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda stages: stages["train"]["outputs"][0].update(sha256="0" * 64), "student/model.safetensors"),
        (lambda stages: stages["train"]["outputs"][0].update(size=1), "student/model.safetensors"),
        (lambda stages: stages["train"]["outputs"][0].update(path="elsewhere"), "elsewhere is missing"),
        (lambda stages: stages["train"]["inputs"].update({"stage.collect": "0" * 64}), "stage train"),
        (lambda stages: stages["train"]["inputs"].update({"recipe.train": "0" * 64}), "recipe.yaml: train"),
        (
            lambda stages: stages["train"]["inputs"].update({"recipe.nothing": "0" * 64}),
            "recipe.yaml: nothing",
        ),
    ],
)
def test_an_edited_manifest_no_longer_fits(run, change, where):
    edit(run, change)
    assert any(where in difference for difference in verify_run(run).differences)


def test_a_changed_recipe_names_the_section_and_the_stage(run):
    text = (run / "recipe.yaml").read_text()
    assert "epochs: 1.0" in text
    (run / "recipe.yaml").write_text(text.replace("epochs: 1.0", "epochs: 2.0"))
    assert verify_run(run).differences == ["recipe.yaml: train differs from what stage train used"]


def test_a_recipe_that_cannot_be_read_is_a_difference(run):
    (run / "recipe.yaml").write_text("name: [")
    assert "recipe.yaml cannot be read" in verify_run(run).differences[0]
    (run / "recipe.yaml").unlink()
    assert verify_run(run).differences == ["recipe.yaml is missing"]


def test_without_a_manifest_there_is_nothing_to_compare(tmp_path):
    with pytest.raises(IntegrityError, match=r"manifest\.json"):
        verify_run(tmp_path)
    with pytest.raises(IntegrityError):
        verify_run(tmp_path / "nowhere")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_a_damaged_manifest_is_refused_or_found_different_but_never_crashes(run, data):
    path = run / "manifest.json"
    good = path.read_bytes()
    cut = data.draw(st.integers(0, len(good) - 2))
    path.write_bytes(good[:cut])
    try:
        with pytest.raises(IntegrityError):
            verify_run(run)
    finally:
        path.write_bytes(good)
