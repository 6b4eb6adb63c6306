"""References, metadata from headers, and their import time."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from transformers import AutoModelForCausalLM

from stillhouse.errors import ModelError, ModelNotFoundError, StillhouseError, UsageError
from stillhouse.models import describe, load_tokenizer, load_weights, open_model, parse_reference


def test_each_form_is_understood(tmp_path, tiny_teacher):
    gguf = tmp_path / "a.gguf"
    gguf.touch()
    assert parse_reference(str(tiny_teacher)).kind == "directory"
    assert parse_reference(str(gguf)).kind == "gguf"
    hub = parse_reference("hub:org/name-1.5B@main")
    assert (hub.kind, hub.name) == ("hub", "org/name-1.5B@main")
    api = parse_reference("api:https://host:8000/v1/#org/model")
    assert (api.kind, api.url, api.name) == ("api", "https://host:8000/v1", "org/model")


def test_the_embedded_model_is_a_gguf_file():
    reference = parse_reference("embedded:smollm2")
    assert reference.is_gguf
    assert reference.path is not None
    assert reference.path.suffix == ".gguf"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("embedded:smolm2", "embedded:smollm2"),
        ("embedded:gpt-4", "Known: smollm2"),
        ("embeded:smollm2", "embedded:smollm2"),
        ("smollm2", "embedded:smollm2"),
        ("Qwen/Qwen3-8B", "hub:Qwen/Qwen3-8B"),
        ("https://host/v1", "api:https://host/v1#MODEL"),
        ("api:host/v1#m", "api:https://host/v1#model"),
        ("api:https://host/v1", "#MODEL"),
        ("hub:justaname", "hub:org/name"),
        ("", "A reference is"),
    ],
)
def test_a_wrong_reference_gets_the_nearest_right_form(text, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError) as caught:
        parse_reference(text)
    assert hint in (caught.value.hint or "")


def test_a_misspelt_path_gets_its_neighbour(tmp_path):
    (tmp_path / "student").mkdir()
    with pytest.raises(ModelNotFoundError) as caught:
        parse_reference(str(tmp_path / "studnet"))
    assert str(tmp_path / "student") in (caught.value.hint or "")
    (tmp_path / "model.bin").touch()
    with pytest.raises(ModelNotFoundError, match="not a GGUF"):
        parse_reference(str(tmp_path / "model.bin"))


def test_a_hub_name_offline_is_not_found_with_a_way_out(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for ask in (describe, load_weights, load_tokenizer):
        with pytest.raises(ModelNotFoundError) as caught:
            ask("hub:stillhouse-tests/no-such-model")
        assert "local directory" in (caught.value.hint or "")


def test_facts_of_a_directory_are_those_of_the_loaded_model(tiny_teacher):
    facts = describe(str(tiny_teacher))
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher)
    assert facts.parameters == sum(p.numel() for p in model.parameters())
    assert facts.vocab_size == model.config.vocab_size
    assert facts.layers == len(model.model.layers)
    assert facts.hidden_size == model.config.hidden_size
    assert facts.context_length == 512
    assert facts.config["model_type"] == facts.model_type == "llama"
    tokenizer, template = load_tokenizer(str(tiny_teacher))
    assert facts.template_hash == template.hash
    assert facts.tokenizer_hash is not None
    assert len(tokenizer) <= facts.vocab_size


def test_the_card_tells_the_licence(tmp_path, tiny_teacher):
    (tmp_path / "config.json").write_text((tiny_teacher / "config.json").read_text())
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# Model\n")
    facts = describe(str(tmp_path))
    assert facts.license == facts.metadata["general.license"] == "cc-by-nc-4.0"
    assert facts.parameters is None


def test_facts_of_the_embedded_model():
    facts = describe("embedded:smollm2")
    assert (facts.parameters, facts.vocab_size, facts.layers) == (134_515_008, 49_152, 30)
    assert facts.license == "apache-2.0"
    assert facts.metadata["general.organization"] == "HuggingFaceTB"
    assert facts.context_length == 8192


def test_an_api_is_known_by_name_only():
    facts = describe("api:https://host/v1#gpt")
    assert (facts.kind, facts.name, facts.parameters) == ("api", "gpt", None)


def test_a_damaged_configuration_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json"):
        describe(str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"config\.json"):
        describe(str(tmp_path))


def test_an_api_has_no_weights():
    with pytest.raises(StillhouseError, match="API"):
        load_weights("api:https://host/v1#gpt")


def test_an_unknown_backend_is_a_usage_error(tiny_teacher):
    with pytest.raises(UsageError, match="vllm"):
        open_model(str(tiny_teacher), backend="vllm")
    with pytest.raises(ModelError, match="GGUF"):
        open_model(str(tiny_teacher), backend="llama.cpp")


def test_describing_a_model_imports_no_torch():
    """The package and describe() import no heavy packages."""
    code = (
        "import sys, json, stillhouse.models as m; m.parse_reference; first = sorted(sys.modules);"
        "m.describe('embedded:smollm2'); print(json.dumps([first, sorted(sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for modules in json.loads(done.stdout):
        assert not {"torch", "transformers", "tokenizers", "openai", "numpy", "jinja2"} & set(modules)
