"""A GGUF header with one lie in it: hundreds of them, and none ends the process that opens it."""

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

LIES = 300
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    tokens, types = vocabulary()
    return write_gguf(
        tmp_path_factory.mktemp("lies") / "honest.gguf",
        tokens=tokens,
        types=types,
        special={"bos": len(tokens) - 2, "eos": len(tokens) - 1},
        model=tiny_model("llama", len(tokens)),
        template=TEMPLATE,
    )


def test_the_walk_over_a_header_finds_what_the_gguf_package_finds(honest):
    reader = gguf.GGUFReader(honest)
    found, end = invalid_gguf.fields(honest.read_bytes())
    assert sum(what == "tensor offset" for what, _, _ in found) == len(reader.tensors)
    assert end <= reader.data_offset < end + 32
    data = honest.read_bytes()
    (place,) = [place for what, place, _ in found if what == "llama.block_count"]
    assert struct.unpack_from("<I", data, place)[0] == reader.fields["llama.block_count"].contents() == 2


def test_an_honest_file_answers(honest):
    assert invalid_gguf.opened(honest) == "answered"


@pytest.mark.slow
def test_no_lie_ends_the_process(honest):
    done = subprocess.run(
        [sys.executable, invalid_gguf.__file__, honest, "2026", "0", str(LIES)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        check=False,
    )
    said = [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "[" and line[1:2].isdigit()]
    assert done.returncode == 0, (
        said[-1:],
        done.stderr[-2000:],
    )  # a signal, or no error of ours
    assert [number for number, _ in said] == [number for number in range(LIES) for _ in range(2)]
    outcomes = collections.Counter(outcome.partition(":")[0] for _, outcome in said[1::2])
    assert outcomes["refused"] > LIES // 2  # the rest lie about what nobody needs


def lying(honest, **lies):
    """A copy whose fields say something else: name -> new value."""
    data = bytearray(honest.read_bytes())
    for what, place, code in invalid_gguf.fields(data)[0]:
        if what.replace(".", "_").replace(" ", "_") in lies:
            value = lies.pop(what.replace(".", "_").replace(" ", "_"))
            struct.pack_into(f"<{code}", data, place, value)
    assert not lies
    path = Path(honest).with_name("one.gguf")
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


@pytest.mark.parametrize(("lies", "message"), REFUSED, ids=str)
def test_a_lie_is_named(honest, lies, message):
    path = lying(honest, **lies)
    with pytest.raises(ModelError, match=message):
        validate_for_llama_cpp(read_gguf(path))


@pytest.mark.parametrize("length", [0, 3, 8, 23, 200, 5000, -1])
def test_a_file_that_is_cut_off_is_refused(honest, length):
    path = honest.with_name("cut.gguf")
    path.write_bytes(honest.read_bytes()[:length])
    with pytest.raises(ModelError, match=r"empty|cut off"):
        validate_for_llama_cpp(read_gguf(path))
