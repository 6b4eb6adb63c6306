"""Inconsistent directories and GGUF files: each raises an error of ours, and nothing outside is read."""

from __future__ import annotations

import json
import shutil

import gguf
import pytest
import torch
from safetensors.torch import load_file
from tiny_gguf import vocabulary, write_gguf

from stillhouse.errors import ModelError, ModelNotFoundError
from stillhouse.models import describe, load_tokenizer, load_weights, parse_reference
from stillhouse.models.backends.llama_cpp import slot_context
from stillhouse.models.gguf.file import read_gguf

TOKENS, TYPES = vocabulary()
SPECIAL = {"bos": len(TOKENS) - 2, "eos": len(TOKENS) - 1}
KIND = gguf.GGUFValueType


@pytest.fixture
def directory(tmp_path, tiny_teacher):
    return shutil.copytree(tiny_teacher, tmp_path / "model")


@pytest.mark.parametrize("shard", ["../outside.safetensors", "evil.bin", "/tmp/evil.safetensors", 5])
def test_an_index_names_only_safetensors_files_beside_it(directory, shard):
    state = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").rename(directory.parent / "outside.safetensors")
    torch.save(state, directory / "evil.bin")
    (directory / "decoy.safetensors").write_bytes(b"")
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, shard)}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"names|not an index"):
        load_weights(str(directory))


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": [1]}', "[" * 100_000])
def test_a_damaged_index_is_an_error(directory, text):
    (directory / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match="not an index"):
        load_weights(str(directory))


CONFIGS = [
    {"num_attention_heads": 0},
    {"num_attention_heads": "x"},
    {"hidden_size": "x"},
    {"hidden_size": 64},
    {"num_hidden_layers": 9},
    {"vocab_size": 400},
    {"rope_parameters": {"rope_type": "zzz"}},
    {"hidden_act": "zzz"},
    {"model_type": "t5"},
    {"model_type": 5},
]


@pytest.mark.parametrize("change", CONFIGS, ids=str)
def test_a_configuration_that_the_weights_belie_is_an_error(directory, change):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError):
        load_weights(str(directory))


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000, '{"text_config": "x"}'])
def test_a_configuration_that_is_none_is_an_error_of_describe(directory, text):
    (directory / "config.json").write_text(text)
    with pytest.raises(ModelError):
        describe(str(directory))


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"added_tokens": [{"id": 1}]}'])
def test_a_damaged_tokenizer_is_an_error(directory, text):
    (directory / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match="no usable tokenizer"):
        load_tokenizer(str(directory))


@pytest.mark.parametrize(
    "text",
    [
        "~nosuchuser/model",
        "a\0b",
        "\ud800",
        "x" * 10_000,
        "api:http://[::1/v1#m",
        "api:http://host:99999/v1#m",
    ],
    ids=lambda text: repr(text[:20]),
)
def test_names_that_no_system_knows_are_not_found(text):
    with pytest.raises(ModelNotFoundError):
        parse_reference(text)


def write_with_header(path, monkeypatch, changes: dict, **options) -> str:
    """A GGUF file whose header has ``changes``: key -> (value, type)."""
    original = gguf.GGUFWriter.add_key_value

    def add(writer, key, value, kind, *rest, **named):
        if key in changes:
            value, kind = changes[key]
            rest, named = (), {}
        original(writer, key, value, kind, *rest, **named)

    monkeypatch.setattr(gguf.GGUFWriter, "add_key_value", add)
    write_gguf(path, **{"tokens": TOKENS, "types": TYPES, "special": SPECIAL, **options})
    return str(path)


NUMBERS = {
    "llama.block_count": [(2**31, KIND.UINT32), (100_000, KIND.UINT32), ("x", KIND.STRING)],
    "llama.embedding_length": [(0, KIND.UINT32), (2**31, KIND.UINT32), ("x", KIND.STRING)],
    "llama.attention.head_count": [(0, KIND.UINT32), (2**31, KIND.UINT32)],
    "llama.attention.head_count_kv": [(0, KIND.UINT32), (-1, KIND.INT32)],
    "llama.context_length": [(0, KIND.UINT32), ("x", KIND.STRING)],
    "llama.attention.layer_norm_rms_epsilon": [("x", KIND.STRING), (float("nan"), KIND.FLOAT32)],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in NUMBERS.items() for value in values]
)
def test_a_size_that_contradicts_the_file_is_refused_before_anything_is_built(
    tmp_path, monkeypatch, key, value
):
    path = write_with_header(tmp_path / "inconsistent.gguf", monkeypatch, {key: value})
    with pytest.raises(ModelError, match=r"cannot be|lacks"):
        load_weights(path)


FIELDS = [
    ("tokenizer.chat_template", 5, KIND.UINT32),
    ("tokenizer.ggml.pre", [1, 2], KIND.ARRAY),
    ("tokenizer.ggml.model", [1, 2], KIND.ARRAY),
    ("tokenizer.ggml.tokens", [1, 2], KIND.ARRAY),
    ("tokenizer.ggml.merges", [1, 2], KIND.ARRAY),
    ("tokenizer.ggml.bos_token_id", "x", KIND.STRING),
    ("tokenizer.ggml.bos_token_id", 3.5, KIND.FLOAT32),
]


@pytest.mark.parametrize(("key", "value", "kind"), FIELDS)
def test_a_tokenizer_field_of_another_type_is_an_error(tmp_path, monkeypatch, key, value, kind):
    path = write_with_header(tmp_path / "inconsistent.gguf", monkeypatch, {key: (value, kind)}, template="x")
    with pytest.raises(ModelError):
        load_tokenizer(path)


SENTENCEPIECE = {"tokenizer.ggml.model": ("llama", KIND.STRING)}


def test_scores_are_held_against_the_tokens(tmp_path, monkeypatch):
    extra = {"tokenizer.ggml.scores": [0.0]}
    with pytest.raises(ModelError, match="1 scores"):
        load_tokenizer(
            write_with_header(tmp_path / "inconsistent.gguf", monkeypatch, SENTENCEPIECE, extra=extra)
        )


def test_an_unknown_token_beyond_the_list_is_none(tmp_path, monkeypatch):
    extra = {"tokenizer.ggml.scores": [0.0] * len(TOKENS), "tokenizer.ggml.unknown_token_id": 999_999}
    path = write_with_header(tmp_path / "inconsistent.gguf", monkeypatch, SENTENCEPIECE, extra=extra)
    assert load_tokenizer(path)[0].unk_token is None


def test_a_start_token_that_no_template_can_write_is_an_error(tmp_path):
    tokens = [*TOKENS[:-2], "$A:0", "</s>"]
    path = tmp_path / "odd.gguf"
    write_gguf(
        path, tokens=tokens, types=TYPES, special=SPECIAL, extra={"tokenizer.ggml.add_bos_token": True}
    )
    with pytest.raises(ModelError, match="start token"):
        load_tokenizer(str(path))


def test_a_count_of_parts_that_is_text_is_an_error(tmp_path):
    path = tmp_path / "part.gguf"
    write_gguf(path, tokens=TOKENS, types=TYPES, special=SPECIAL, extra={"split.count": "2"})
    with pytest.raises(ModelError, match="part of a split file"):
        read_gguf(path)


@pytest.mark.parametrize("heads", [("x", KIND.STRING), (0, KIND.UINT32)])
def test_slots_of_a_file_with_invalid_sizes(tmp_path, monkeypatch, heads):
    path = tmp_path / "inconsistent.gguf"
    write_with_header(
        path, monkeypatch, {"llama.attention.head_count": heads, "llama.attention.head_count_kv": heads}
    )
    with pytest.raises(ModelError, match="sizes in its header are invalid"):
        slot_context(read_gguf(path))


def test_a_model_whose_readme_has_a_date_that_does_not_exist_is_described(directory):
    (directory / "README.md").write_text("---\ndate: 2024-02-30\nlicense: mit\n---\n")
    assert describe(str(directory)).metadata["license"] == "mit"
