"""The list of models on this machine: what it finds, how it names it, and what it leaves out."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from stillhouse.cli import main
from stillhouse.models import describe, list_models, parse_reference


@pytest.fixture
def tree(tmp_path, tiny_teacher, monkeypatch) -> Path:
    """A working directory with a run, a model, unusable models, and a cache of the Hub."""
    run = tmp_path / "runs" / "first"
    for part in ("student", "start", "control/student"):
        shutil.copytree(tiny_teacher, run / part)
    (run / "recipe.yaml").touch()
    (run / "manifest.json").touch()
    shutil.copytree(tiny_teacher, tmp_path / "own")
    shutil.copytree(tiny_teacher, tmp_path / ".hidden" / "model")
    shutil.copytree(tiny_teacher, tmp_path / "encoder")
    config = json.loads((tiny_teacher / "config.json").read_text())
    (tmp_path / "encoder" / "config.json").write_text(json.dumps(config | {"architectures": ["BertModel"]}))
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text(json.dumps(config))
    (tmp_path / "pickled" / "pytorch_model.bin").touch()
    (tmp_path / "broken.gguf").write_bytes(b"not a model")
    cache = tmp_path / "cache" / "hub"
    snapshot = cache / "models--org--tiny" / "snapshots" / ("a" * 40)
    shutil.copytree(tiny_teacher, snapshot)
    (cache / "models--org--tiny" / "refs").mkdir()
    (cache / "models--org--tiny" / "refs" / "main").write_text("a" * 40)
    (cache / "datasets--org--data" / "snapshots" / ("b" * 40)).mkdir(parents=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_model_is_named_as_other_commands_name_it(tree, tiny_teacher):
    found = {model.reference: model for model in list_models(Path())}
    usable = {reference: model.kind for reference, model in found.items() if model.can}
    assert usable == {
        "own": "directory",
        "runs/first": "student",
        "hub:org/tiny": "hub",
        "embedded:smollm2": "embedded",
        # the snapshot lies below the working directory too, in this test
        f"cache/hub/models--org--tiny/snapshots/{'a' * 40}": "directory",
    }
    facts = describe(str(tiny_teacher))
    for reference in ("own", "runs/first", "hub:org/tiny"):
        model = found[reference]
        assert (model.parameters, model.size_bytes) == (facts.parameters, facts.size_bytes)
        assert model.context_length == 512
        assert model.can == ("chat", "serve", "logits")
    assert parse_reference("runs/first").path == Path("runs/first/student")


def test_unusable_models_are_listed_with_the_reason(tree):
    problems = {model.reference: model.problem for model in list_models(Path()) if model.problem}
    assert problems == {
        "broken.gguf": "is not a GGUF file",
        "encoder": "does not generate text (BertModel)",
        "pickled": "has no safetensors weights",
    }


def test_the_command_prints_a_table_or_json(tree, capsys):
    assert main(["models", "runs"]) == 0
    table = capsys.readouterr().out
    assert "runs/first" in table and "chat, serve, logits" in table and "start" not in table
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"reference", "kind", "size_bytes", "parameters", "context_length", "can", "problem"} == set(
        rows[0]
    )
    assert main(["models", "absent"]) == 2


def test_an_empty_directory_has_no_models(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "absent"))
    assert [model.kind for model in list_models(tmp_path)] == ["embedded"]
