"""Quantised bytes against the gguf package's, and the type of each tensor."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from exported_models import byte_level, save
from gguf import GGMLQuantizationType as Kind

from stillhouse.errors import MissingExtraError, ModelError
from stillhouse.export import export_gguf, quantise
from stillhouse.export.quantise import QUANTISATIONS, stored_bytes, tensor_types
from stillhouse.export.tensors import ExportedTensor
from stillhouse.models import load_weights, read_gguf

VALUES = np.random.default_rng(0).normal(0, 0.05, (6, 512)).astype(np.float32)


@pytest.fixture
def without_llama(monkeypatch):
    monkeypatch.setattr(quantise, "_ggml", lambda: None)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_0", "Q5_1"])
def test_ggml_and_the_gguf_package_make_the_same_bytes(kind):
    pytest.importorskip("xllamacpp")
    quantised = quantise.quantise(VALUES, Kind[kind], "t")
    expected = gguf.quantize(VALUES, Kind[kind])
    assert quantised.dtype == np.uint8
    assert quantised.tobytes() == expected.tobytes()
    assert quantised.size == stored_bytes(VALUES.shape, Kind[kind])


@pytest.mark.parametrize(
    ("kind", "error"), [("Q8_0", 0.008), ("Q6_K", 0.025), ("Q5_K", 0.05), ("Q4_K", 0.1), ("Q4_0", 0.12)]
)
def test_de_quantised_values_are_near(kind, error):
    """Root mean square error relative to the values', with the gguf package's de-quantiser."""
    pytest.importorskip("xllamacpp")
    raw = quantise.quantise(VALUES, Kind[kind], "t").reshape(6, -1)
    back = gguf.dequantize(raw, Kind[kind])
    measured = np.sqrt(np.mean((back - VALUES) ** 2) / np.mean(VALUES**2))
    assert error / 3 < measured < error


def test_values_beyond_float16_are_refused():
    with pytest.raises(ModelError, match="beyond float16"):
        quantise.quantise(np.full((1, 32), 1e5, np.float32), Kind.F16, "t")


def tensors(*, layers=16, columns=256, tied=True):
    shapes = {"token_embd.weight": (100, columns), "output_norm.weight": (columns,)}
    if not tied:
        shapes["output.weight"] = (100, columns)
    for i in range(layers):
        shapes |= {
            f"blk.{i}.attn_q.weight": (64, columns),
            f"blk.{i}.attn_q.bias": (64,),
            f"blk.{i}.attn_v.weight": (64, columns),
            f"blk.{i}.ffn_down.weight": (columns, 512),
            f"blk.{i}.attn_norm.weight": (columns,),
        }
    return [ExportedTensor(name, shape, lambda: VALUES) for name, shape in shapes.items()]


def types(exported, name):
    return {
        t.name: kind.name
        for t, kind in zip(exported, tensor_types(exported, QUANTISATIONS[name]), strict=True)
    }


def test_the_mix_of_q4_k_m_is_llama_cpps():
    """The layers with more bits in a Q4_K_M file of 16 layers, as `llama-quantize` lists them."""
    types_by_name = types(tensors(), "q4_k_m")
    better = [i for i in range(16) if types_by_name[f"blk.{i}.ffn_down.weight"] == "Q6_K"]
    assert better == [0, 1, 4, 7, 10, 13, 14, 15]
    assert better == [i for i in range(16) if types_by_name[f"blk.{i}.attn_v.weight"] == "Q6_K"]
    assert types_by_name["blk.0.attn_q.weight"] == "Q4_K"
    assert types_by_name["token_embd.weight"] == "Q6_K"
    assert {types_by_name[name] for name in types_by_name if name.endswith(("bias", "norm.weight"))} == {
        "F32"
    }


def test_the_output_weights_get_more_bits_and_an_untied_embedding_does_not():
    types_by_name = types(tensors(tied=False), "q4_0")
    assert (types_by_name["output.weight"], types_by_name["token_embd.weight"]) == ("Q6_K", "Q4_0")
    assert types(tensors(tied=False), "f16")["output.weight"] == "F16"


def test_narrow_rows_fall_back_to_smaller_blocks():
    types_by_name = types(tensors(columns=96), "q4_k_m")  # 96 = 3 * 32, not a multiple of 256
    assert (types_by_name["blk.3.attn_q.weight"], types_by_name["blk.0.attn_v.weight"]) == ("Q5_0", "Q8_0")
    assert (types_by_name["token_embd.weight"], types_by_name["blk.3.ffn_down.weight"]) == ("Q8_0", "Q4_K")
    assert types(tensors(columns=40), "q8_0")["blk.3.attn_q.weight"] == "F16"


@pytest.mark.parametrize("name", QUANTISATIONS)
def test_every_type_is_written_as_it_says_and_loads(tmp_path, name):
    pytest.importorskip("xllamacpp")
    model = save(tmp_path / "model", "llama", byte_level(), hidden_size=256, intermediate_size=512)
    (export,) = export_gguf(tmp_path / "model", [name])
    file = read_gguf(export.path)
    assert file.metadata["general.file_type"] == QUANTISATIONS[name].file_type
    assert file.tensors["blk.0.attn_q.weight"].type == Kind[QUANTISATIONS[name].kind]
    loaded = load_weights(str(export.path)).model.state_dict()
    for key, value in model.state_dict().items():
        assert (loaded[key] - value).square().mean() <= 0.01 * value.square().mean(), key


def test_without_llama_cpps_library_the_gguf_package_quantises_what_it_can(tmp_path, without_llama):
    save(tmp_path / "model", "llama", byte_level())
    exports = export_gguf(tmp_path / "model", ["q8_0", "q4_0"], tmp_path / "out")
    assert read_gguf(exports[1].path).tensors["output.weight"].type == Kind.Q8_0  # Q6_K with the library
    with pytest.raises(MissingExtraError, match="q4_k_m") as caught:
        export_gguf(tmp_path / "model", ["q4_k_m"], tmp_path / "other")
    assert "f32, f16, bf16, q8_0, q4_0" in (caught.value.hint or "")
