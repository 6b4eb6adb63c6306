"""De-quantised weights against the model they were written from, and against transformers' own loader."""

from __future__ import annotations

import shutil

import gguf
import numpy as np
import pytest
import torch
from tiny_gguf import tiny_model, vocabulary, write_gguf
from transformers import AutoModelForCausalLM

from stillhouse.errors import ModelError, ModelNotFoundError, StillhouseError
from stillhouse.models import describe, load_tokenizer, load_weights
from stillhouse.models.gguf.config import round_f32, transformers_config
from stillhouse.models.gguf.file import read_gguf

TOKENS, TYPES = vocabulary(padding=2)
SPECIAL = {"bos": len(TOKENS) - 4, "eos": len(TOKENS) - 3}
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def write(path, architecture="llama", *, quantization=gguf.GGMLQuantizationType.F32, tensors=None, **changes):
    model = tiny_model(architecture, len(TOKENS), **changes)
    write_gguf(
        path,
        tokens=TOKENS,
        types=TYPES,
        special=SPECIAL,
        template=TEMPLATE,
        model=model,
        architecture=architecture,
        quantization=quantization,
        tensors=tensors,
    )
    return model


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3"])
def test_the_model_that_was_written_comes_back(tmp_path, architecture):
    path = tmp_path / "tiny.gguf"
    original = write(path, architecture)
    loaded = load_weights(str(path)).model
    ids = torch.randint(0, len(TOKENS), (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, logits = original(ids).logits, loaded(ids).logits
    # Gemma's norms are stored plus one, which rounds; the others are the same bits.
    tolerance = 1e-4 if architecture == "gemma3" else 0
    torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance)
    assert loaded.training is False


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3"])
def test_quantised_weights_are_bit_equal_to_transformers_loader(tmp_path, architecture):
    path = tmp_path / "tiny.gguf"
    # transformers ignores the head size that a qwen3 file states and takes 128.
    changes = {"head_dim": 128} if architecture == "qwen3" else {}
    write(path, architecture, quantization=gguf.GGMLQuantizationType.Q8_0, **changes)
    ours = load_weights(str(path)).model.state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32
    ).state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_loaded_gguf_can_be_saved_and_loaded_again(tmp_path):
    path = tmp_path / "tiny.gguf"
    write(path, quantization=gguf.GGMLQuantizationType.Q4_1)
    weights = load_weights(str(path))
    weights.model.save_pretrained(tmp_path / "saved")
    weights.tokenizer.save_pretrained(tmp_path / "saved")
    again = load_weights(str(tmp_path / "saved"))
    for name, value in weights.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert again.template.hash == weights.template.hash
    assert again.fingerprint != weights.fingerprint
    text = "Hi the 123 <|im_end|>"
    assert again.tokenizer.encode(text) == weights.tokenizer.encode(text)
    assert describe(str(tmp_path / "saved")).parameters == describe(str(path)).parameters


def test_llama_3_rotary_scaling_is_recovered_from_the_stored_factors(tmp_path):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    path = tmp_path / "tiny.gguf"
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    settings = {"rope_parameters": rope, "head_dim": 64, "max_position_embeddings": 16384}
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](tiny_model("llama", 8, **settings).config, torch.device("cpu"))
    plain = 500000.0 ** (-torch.arange(0, 64, 2) / 64)
    write(path, tensors={"rope_freqs.weight": (plain / scaled).numpy()}, **settings)
    assert transformers_config(read_gguf(path))["rope_parameters"] == rope
    write(path, tensors={"rope_freqs.weight": np.array([1.0, 3.0] * 16, np.float32)}, **settings)
    with pytest.raises(ModelError, match="rotary factors"):
        transformers_config(read_gguf(path))


def test_a_cut_off_file_is_an_error_wherever_it_is_cut(tmp_path):
    path = tmp_path / "tiny.gguf"
    write(path)
    data = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    for share in (0, 1e-5, 1e-3, 0.01, 0.02, 0.1, 0.5, 0.999):
        cut.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ModelError):
            load_weights(str(cut))


def test_a_damaged_header_never_crashes(tmp_path):
    """Each of 300 headers with one damaged byte loads, or raises an error of ours."""
    path = tmp_path / "tiny.gguf"
    write(path)
    data = path.read_bytes()
    bad = tmp_path / "bad.gguf"
    for at in range(0, 3000, 10):
        bad.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        try:
            describe(str(bad))
            load_tokenizer(str(bad))
        except StillhouseError:
            continue


def test_a_wrong_tensor_count_is_refused(tmp_path):
    path = tmp_path / "tiny.gguf"
    write(path)
    data = bytearray(path.read_bytes())
    data[8:16] = (2**40).to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(ModelError, match="tensor"):
        load_weights(str(path))


def test_an_unsupported_architecture_is_named(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tokens=TOKENS, types=TYPES, special=SPECIAL, architecture="mamba")
    with pytest.raises(ModelError, match="mamba"):
        load_weights(str(path))
    assert describe(str(path)).model_type == "mamba"


def test_a_missing_tensor_is_named(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tokens=TOKENS, types=TYPES, special=SPECIAL, extra={"llama.block_count": 2})
    with pytest.raises(ModelError, match=r"lacks model\.layers\.1"):
        load_weights(str(path))


def test_pickles_are_refused_and_never_opened(tmp_path, tiny_teacher):
    for name in ("pytorch_model.bin", "model.pt", "weights.ckpt"):
        directory = tmp_path / name.replace(".", "_")
        directory.mkdir()
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_teacher / file, directory)
        (directory / name).write_bytes(b"\x80\x04cos\nsystem\n(S'exit 1'\ntR.")
        with pytest.raises(ModelError, match="pickle") as caught:
            load_weights(str(directory))
        assert "safetensors" in (caught.value.hint or "")


def test_a_directory_without_a_model_is_not_found(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        load_weights(str(tmp_path))
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        describe(str(tmp_path))


def test_a_cut_off_safetensors_file_is_an_error(tmp_path, tiny_teacher):
    broken = shutil.copytree(tiny_teacher, tmp_path / "broken")
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="broken"):
        load_weights(str(broken))
    file.write_bytes(b"\xff" * 20)
    with pytest.raises(ModelError, match="safetensors"):
        describe(str(broken))


@pytest.mark.parametrize("value", [1e-5, 1e-6, 10000.0, 500000.0, 0.1, 1 / 3])
def test_float32_metadata_is_read_as_the_decimal_that_was_meant(value):
    stored = torch.tensor(value, dtype=torch.float32).item()
    assert torch.tensor(round_f32(stored)).item() == stored
    assert len(repr(round_f32(stored))) <= len(repr(stored))
    if value != 1 / 3:
        assert round_f32(stored) == value
