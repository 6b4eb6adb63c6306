"""Validates a GGUF header before llama.cpp loads the file.

llama.cpp asserts its expectations of a header, and a failed assertion ends the whole process with every
answer in progress. The checks here were found by changing one number at a time
(tests/models/gguf/invalid_gguf.py). The weights themselves are not checked.
"""

from __future__ import annotations

import math
import re
from typing import Any, NoReturn

from stillhouse.errors import ModelError
from stillhouse.models.gguf.file import GgufFile, TensorInfo

_POSITIVE = ("block_count", "context_length", "embedding_length", "attention.head_count")
_WITHOUT_HEADS = ("mamba", "rwkv")  # prefixes of architectures that declare 0 heads
_BLOCK = re.compile(r"blk\.(\d+)\.")


def validate_for_llama_cpp(file: GgufFile) -> None:
    """Refuses a file on which llama.cpp would end the process.

    Raises:
        ModelError: an impossible number, more layers than there are tensors for, or a truncated tensor.
    """
    prefix = f"{file.architecture}."
    for key, value in file.metadata.items():
        if key.startswith(prefix):
            _require_number(file, key, value)
    headless = file.architecture.startswith(_WITHOUT_HEADS)
    for key in _POSITIVE[:-1] if headless else _POSITIVE:
        value = file.require(prefix + key)
        if not all(type(number) is int and number > 0 for number in _numbers(value)):
            _refuse(file, f"{key} cannot be {value!r:.60}")
    blocks = {match[1] for name in file.tensors if (match := _BLOCK.match(name))}
    count = file.require(f"{prefix}block_count")
    if count > len(blocks):
        _refuse(file, f"its header declares {count} layers, but it has tensors of {len(blocks)}")
    size = file.path.stat().st_size
    for tensor in file.tensors.values():
        if tensor.offset + _bytes(file, tensor) > size:
            _refuse(file, f"it is cut off: tensor {tensor.name!r} ends after the file does")


def _require_number(file: GgufFile, key: str, value: Any) -> None:
    for number in _numbers(value):
        if isinstance(number, float) and not (math.isfinite(number) and abs(number) < 1e30):
            _refuse(file, f"{key} cannot be {number}")
        if isinstance(number, int) and not -1 <= number < 2**31:
            _refuse(file, f"{key} cannot be {number}")
    if key.endswith("_epsilon") and not 0 <= value < 1:
        _refuse(file, f"{key} cannot be {value}")


def _numbers(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _bytes(file: GgufFile, tensor: TensorInfo) -> int:
    """Bytes of a tensor in the file."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.type)]
    except (ValueError, KeyError):
        return 0  # a type newer than the gguf package; llama.cpp refuses those that it does not know, too
    if tensor.shape[-1] % block:
        _refuse(file, f"tensor {tensor.name!r} of shape {tensor.shape} does not fill blocks of {block}")
    return tensor.size // block * block_bytes


def _refuse(file: GgufFile, what: str) -> NoReturn:
    raise ModelError(f"{file.path}: {what}", hint="Download the file again, or convert the model again.")
