"""Hundreds of GGUF headers with one corrupted field each: none ends the process that opens it."""

import collections
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import gguf
import invalid_gguf
import pytest
from tiny_gguf import tiny_model, vocabulary, write_gguf

from stillhouse.errors import ModelError
from stillhouse.models.gguf.file import read_gguf
from stillhouse.models.gguf.validate import validate_for_llama_cpp

pytest.importorskip("xllamacpp")

CORRUPTIONS = 300
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    tokens, types = vocabulary()
    return write_gguf(
        tmp_path_factory.mktemp("gguf") / "valid.gguf",
        tokens=tokens,
        types=types,
        special={"bos": len(tokens) - 2, "eos": len(tokens) - 1},
        model=tiny_model("llama", len(tokens)),
        template=TEMPLATE,
    )


def test_the_walk_over_a_header_finds_what_the_gguf_package_finds(valid):
    reader = gguf.GGUFReader(valid)
    numbers, end = invalid_gguf.fields(valid.read_bytes())
    assert sum(name == "tensor offset" for name, _, _ in numbers) == len(reader.tensors)
    assert end <= reader.data_offset < end + 32
    data = valid.read_bytes()
    (offset,) = [offset for name, offset, _ in numbers if name == "llama.block_count"]
    assert struct.unpack_from("<I", data, offset)[0] == reader.fields["llama.block_count"].contents() == 2


def test_an_valid_file_answers(valid):
    assert invalid_gguf.try_to_open(valid) == "answered"


@pytest.mark.slow
def test_no_corrupted_field_ends_the_process(valid):
    result = subprocess.run(
        [sys.executable, invalid_gguf.__file__, valid, "2026", "0", str(CORRUPTIONS)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        check=False,
    )
    lines = [
        json.loads(line) for line in result.stdout.splitlines() if line[:1] == "[" and line[1:2].isdigit()
    ]
    assert result.returncode == 0, (
        lines[-1:],
        result.stderr[-2000:],
    )  # a signal, or an error that is not ours
    assert [number for number, _ in lines] == [number for number in range(CORRUPTIONS) for _ in range(2)]
    outcomes = collections.Counter(outcome.partition(":")[0] for _, outcome in lines[1::2])
    assert outcomes["refused"] > CORRUPTIONS // 2  # the rest corrupt fields that nothing needs


def with_fields(valid, **values):
    """A copy with other fields: name -> new value."""
    data = bytearray(valid.read_bytes())
    for name, offset, code in invalid_gguf.fields(data)[0]:
        if name.replace(".", "_").replace(" ", "_") in values:
            value = values.pop(name.replace(".", "_").replace(" ", "_"))
            struct.pack_into(f"<{code}", data, offset, value)
    assert not values
    path = Path(valid).with_name("one.gguf")
    path.write_bytes(data)
    return path


REFUSED = [
    ({"magic": 0x47475546}, "not a GGUF file"),
    ({"version": 1}, "version 1"),
    ({"tensor_count": 2**63}, "dimensions|cut off or damaged"),
    ({"key_count": 2**64 - 1}, "cut off or damaged"),
    ({"key_length": 2**63}, "cut off or damaged"),
    ({"tensor_name_length": 2**64 - 1}, "cut off or damaged"),
    ({"tokenizer_ggml_tokens_count": 2**62}, "cut off or damaged|unknown type"),
    ({"dimensions": 2**32 - 1}, "dimensions"),
    ({"dimension": 0}, "is empty"),
    ({"dimension": 2**62}, "ends after the file does"),
    ({"tensor_offset": 2**63}, "ends after the file does"),
    ({"llama_block_count": 2**32 - 1}, "block_count cannot be"),
    ({"llama_block_count": 1000}, "its header declares 1000 layers"),
    ({"llama_attention_head_count": 0}, "head_count cannot be 0"),
    ({"llama_attention_layer_norm_rms_epsilon": float("nan")}, "epsilon cannot be nan"),
    ({"llama_attention_layer_norm_rms_epsilon": -1e-6}, "epsilon cannot be"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=str)
def test_an_invalid_field_is_named(valid, values, message):
    path = with_fields(valid, **values)
    with pytest.raises(ModelError, match=message):
        validate_for_llama_cpp(read_gguf(path))


@pytest.mark.parametrize("length", [0, 3, 8, 23, 200, 5000, -1])
def test_a_file_that_is_cut_off_is_refused(valid, length):
    path = valid.with_name("cut.gguf")
    path.write_bytes(valid.read_bytes()[:length])
    with pytest.raises(ModelError, match=r"empty|cut off"):
        validate_for_llama_cpp(read_gguf(path))
