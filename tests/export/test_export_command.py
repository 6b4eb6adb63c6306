"""`still export`: what it writes, what it refuses, and what remains after a failure."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from exported_models import LlamaCpp, save
from safetensors.torch import load_file, save_file
from still_command import still

from stillhouse.cli import main
from stillhouse.errors import ModelError, ModelNotFoundError, StorageError, UsageError
from stillhouse.export import export_gguf, write
from stillhouse.models import load_weights

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model(tmp_path):
    """The directory of a tiny Llama."""
    save(tmp_path / "model", "llama")
    return tmp_path / "model"


def test_a_finished_run_becomes_a_file_that_answers(tmp_path, model):
    run = tmp_path / "runs" / "first"
    shutil.copytree(model, run / "student")
    result = still("export", run, "--to", "gguf", "--quantize", "q8_0", "f16", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert sorted(file.name for file in (run / "gguf").iterdir()) == [
        "README.md",
        "first-f16.Modelfile",
        "first-f16.gguf",
        "first-q8_0.Modelfile",
        "first-q8_0.gguf",
    ]
    assert "first-f16.gguf" in result.stdout and "ollama create" in result.stderr
    original = load_weights(str(model)).model
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected = original(ids).logits[0, -1].log_softmax(-1)
    for name, error in (("f16", 0.05), ("q8_0", 0.5)):
        logprobs = LlamaCpp(run / "gguf" / f"first-{name}.gguf").logprobs(ids[0].tolist(), len(expected))
        assert (logprobs - expected).abs().max() < error


def test_machines_get_json(tmp_path, model, capsys):
    out = tmp_path / "given.gguf"
    assert main(["export", str(model), "--to", "gguf", "--out", str(out), "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["files"][0]["path"] == str(out)
    assert output["files"][0]["bytes"] == out.stat().st_size
    assert output["files"][0]["type"] == "q8_0"


def test_nothing_is_overwritten_unasked(model, capsys):
    arguments = ["export", str(model), "--to", "gguf", "--quantize", "f32"]
    assert main(arguments) == 0
    file = model / "gguf" / "model-f32.gguf"
    file.write_bytes(b"mine")
    assert main(arguments) == 2
    assert "--replace" in capsys.readouterr().err
    assert file.read_bytes() == b"mine"
    assert main([*arguments, "--replace"]) == 0
    assert file.read_bytes()[:4] == b"GGUF"


def test_one_file_cannot_hold_several_types(tmp_path, model):
    with pytest.raises(UsageError, match="several types"):
        export_gguf(model, ["f16", "q8_0"], tmp_path / "one.gguf")


def test_wrong_words_are_refused(model, capsys):
    assert main(["export", str(model), "--to", "gguf", "--quantize", "q9_9"]) == 2
    assert "q8_0" in capsys.readouterr().err
    assert main(["export", str(model), "--to", "onnx"]) == 2
    assert main(["export", str(model / "nowhere"), "--to", "gguf"]) == 1


def pickled(model):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def weightless(model):
    (model / "model.safetensors").unlink()


def cut_off(model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def another_kind(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "gpt_neox"}))


def lacking(model):
    weights = load_file(model / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, model / "model.safetensors")


def misshapen(model):
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"][:-1].clone()
    save_file(weights, model / "model.safetensors")


def not_finite(model):
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, model / "model.safetensors")


def without_tokenizer(model):
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (pickled, ModelError, "pickle"),
        (weightless, ModelNotFoundError, "no weights"),
        (cut_off, ModelError, "damaged"),
        (another_kind, ModelError, "gpt_neox"),
        (lacking, ModelError, r"layers\.1\.mlp\.up_proj"),
        (misshapen, ModelError, "shape"),
        (not_finite, ModelError, "finite"),
        (without_tokenizer, ModelError, "tokenizer"),
    ],
)
def test_damaged_models_are_refused_and_leave_nothing(tmp_path, model, damage, error, words):
    damage(model)
    with pytest.raises(error, match=words):
        export_gguf(model, ["f16"], tmp_path / "out")
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own call
def test_an_adapter_is_merged_into_its_base(tmp_path, model):
    peft = pytest.importorskip("peft")
    base = load_weights(str(model)).model
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(base, settings)
    adapted.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(model)
    (export,) = export_gguf(tmp_path / "adapter", ["f32"])
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected, logits = adapted(input_ids=ids).logits, load_weights(str(export.path)).model(ids).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)

    config["base_model_name_or_path"] = "somebody/elsewhere"
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelNotFoundError, match="somebody/elsewhere"):
        export_gguf(tmp_path / "adapter", ["f16"])
    (tmp_path / "adapter/adapter_model.safetensors").rename(tmp_path / "adapter/adapter_model.bin")
    with pytest.raises(ModelError, match="pickles"):
        export_gguf(tmp_path / "adapter", ["f16"])


def test_a_directory_without_write_permission_is_named(tmp_path, model):
    directory = tmp_path / "locked"
    directory.mkdir(mode=0o555)
    if os.geteuid() == 0:
        directory = Path("/proc/self/here")  # not even the superuser can write there
    with pytest.raises(StorageError, match=directory.name):
        export_gguf(model, ["f16"], directory)


@pytest.mark.parametrize("known", [True, False], ids=["before", "while writing"])
def test_a_full_disk_leaves_nothing(tmp_path, model, monkeypatch, known):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        if not known:
            monkeypatch.setattr(write, "_require_disk_space", lambda path, size: None)
        with pytest.raises(StorageError, match="too full" if known else "disk is full"):
            export_gguf(model, ["f32"], disk)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


SLOWLY = """
import sys, time
from pathlib import Path
from stillhouse.export import export_gguf, write
quick = write.quantise
def slow(*arguments):
    time.sleep(0.2)
    return quick(*arguments)
write.quantise = slow
export_gguf(Path(sys.argv[1]), ["f32"], Path(sys.argv[2]))
"""


def test_kill_9_leaves_no_half_file_under_the_name(tmp_path, model):
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-c", SLOWLY, str(model), str(out)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not any(file.stat().st_size > 30_000 for file in out.glob(".*.tmp")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert [file.name for file in out.iterdir() if not file.name.startswith(".")] == []
    (export,) = export_gguf(model, ["f32"], out)  # the same command now succeeds
    assert export.path.read_bytes()[:4] == b"GGUF"


def test_an_interrupted_replacement_keeps_the_old_file(model, monkeypatch):
    (export,) = export_gguf(model, ["f32"])
    before = export.path.read_bytes()
    monkeypatch.setattr(write, "check_file", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_gguf(model, ["f32"], replace=True)
    assert export.path.read_bytes() == before


@pytest.mark.slow
def test_smollm2_survives(tmp_path):
    """The real model: under 0.01 nats/token in q8_0, and llama.cpp agrees with transformers."""
    weights = load_weights("embedded:smollm2")
    weights.model.save_pretrained(tmp_path / "model")
    weights.tokenizer.chat_template = weights.template.source
    weights.tokenizer.save_pretrained(tmp_path / "model")
    (export,) = export_gguf(tmp_path / "model", ["q8_0"])
    assert export.template == "modelfile"
    text = (ROOT / "LICENSE").read_text()
    ids = torch.tensor([weights.tokenizer.encode(text)[:200]])
    exported = load_weights(str(export.path)).model
    with torch.no_grad():
        p, q = (model(ids).logits[0].log_softmax(-1) for model in (weights.model, exported))
    assert (p.exp() * (p - q)).sum(-1).mean() < 0.01
    theirs = LlamaCpp(export.path).logprobs(ids[0, :120].tolist(), p.shape[-1])
    assert (p[119].exp() * (p[119] - theirs)).sum() < 0.01
