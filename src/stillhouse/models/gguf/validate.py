"""Holds a GGUF header against itself and its file before llama.cpp sees it.

llama.cpp asserts what it believes of a header, and an assertion that fails ends the whole process, with every
answer under way in it. What is refused here was found by changing one number at a time
(tests/models/gguf/invalid_gguf.py). Whether the weights themselves make sense is not looked at.
"""

from __future__ import annotations

import math
import re
from typing import Any, NoReturn

from stillhouse.errors import ModelError
from stillhouse.models.gguf.file import GgufFile, TensorInfo

_POSITIVE = ("block_count", "context_length", "embedding_length", "attention.head_count")
_WITHOUT_HEADS = ("mamba", "rwkv")  # architectures, by their beginning, that say 0 heads
_BLOCK = re.compile(r"blk\.(\d+)\.")


def validate_for_llama_cpp(file: GgufFile) -> None:
    """Refuses a file that would end the process that gives it to llama.cpp.

    Raises:
        ModelError: a number that cannot be, more layers than there are tensors for, or a tensor that does not
            lie in the file.
    """
    prefix = f"{file.architecture}."
    for key, value in file.metadata.items():
        if key.startswith(prefix):
            _require_number(file, key, value)
    headless = file.architecture.startswith(_WITHOUT_HEADS)
    for key in _POSITIVE[:-1] if headless else _POSITIVE:
        value = file.require(prefix + key)
        if not all(type(one) is int and one > 0 for one in _items(value)):
            _refuse(file, f"{key} cannot be {value!r:.60}")
    blocks = {match[1] for name in file.tensors if (match := _BLOCK.match(name))}
    count = file.require(f"{prefix}block_count")
    if count > len(blocks):
        _refuse(file, f"it says that it has {count} layers, and has tensors of {len(blocks)}")
    size = file.path.stat().st_size
    for place in file.tensors.values():
        if place.offset + _bytes(file, place) > size:
            _refuse(file, f"it is cut off: tensor {place.name!r} ends after the file does")


def _require_number(file: GgufFile, key: str, value: Any) -> None:
    for one in _items(value):
        if isinstance(one, float) and not (math.isfinite(one) and abs(one) < 1e30):
            _refuse(file, f"{key} cannot be {one}")
        if isinstance(one, int) and not -1 <= one < 2**31:
            _refuse(file, f"{key} cannot be {one}")
    if key.endswith("_epsilon") and not 0 <= value < 1:
        _refuse(file, f"{key} cannot be {value}")


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _bytes(file: GgufFile, place: TensorInfo) -> int:
    """Bytes of a tensor in the file."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(place.type)]
    except (ValueError, KeyError):
        return 0  # newer than the gguf package; llama.cpp refuses what it does not know either
    if place.shape[-1] % block:
        _refuse(file, f"tensor {place.name!r} of shape {place.shape} does not fill blocks of {block}")
    return place.size // block * block_bytes


def _refuse(file: GgufFile, what: str) -> NoReturn:
    raise ModelError(f"{file.path}: {what}", hint="Download the file again, or convert the model again.")
