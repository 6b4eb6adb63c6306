"""Reads GGUF files: metadata and tensor offsets from the header, tensors on demand.

The `gguf` package's reader creates one numpy view for each element, which takes seconds for a vocabulary.
This one takes a fraction of a second, and needs no package until a tensor is de-quantised. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian). Every length is
checked against the file before it is used, and a truncated or inconsistent file is a ModelError. Split files
(`-00001-of-0000N`) are refused.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from stillhouse.errors import MissingExtraError, ModelError, ModelNotFoundError

if TYPE_CHECKING:
    import numpy as np

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is in the file and how it is stored."""

    name: str
    shape: tuple[int, ...]
    """Row-major, as in numpy and torch (GGUF itself lists the fastest dimension first)."""
    type: int
    """ggml type number (0 is F32, 1 is F16, …)."""
    offset: int
    """Bytes from the start of the file."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file's header."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo] = field(repr=False)

    @property
    def architecture(self) -> str:
        """`general.architecture`."""
        return str(self.require("general.architecture"))

    def require(self, key: str) -> Any:
        """The value of a metadata key. Raises ModelError where the file lacks it."""
        if key not in self.metadata:
            raise ModelError(
                f"{self.path} has no {key!r} in its header", hint="Convert the model to GGUF again."
            )
        return self.metadata[key]

    def architecture_field(self, suffix: str, default: Any = None) -> Any:
        """The value of `<architecture>.<suffix>`."""
        return self.metadata.get(f"{self.architecture}.{suffix}", default)


def read_gguf(path: str | Path) -> GgufFile:
    """The header of the GGUF file at ``path``.

    Raises:
        ModelNotFoundError: no such file.
        ModelError: not a GGUF file, truncated, or of a version that is not supported.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelNotFoundError(f"no GGUF file at {path}")
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise ModelError(f"{path} is empty") from None
        with data:
            return _HeaderReader(path, data).read()


def read_tensor(file: GgufFile, name: str) -> np.ndarray:
    """The tensor ``name``, de-quantised to float32, row-major.

    Raises:
        ModelError: the file ends before the tensor does, or its type cannot be de-quantised.
        MissingExtraError: the `gguf` package is not installed.
    """
    import numpy as np

    try:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError as error:
        raise MissingExtraError(
            "reading GGUF weights needs the gguf package", hint="pip install 'stillhouse[gguf]'"
        ) from error

    tensor = file.tensors[name]
    try:
        kind = GGMLQuantizationType(tensor.type)
        block, block_bytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise ModelError(f"{file.path}: tensor {name!r} has the unknown type {tensor.type}") from None
    if tensor.shape[-1] % block:
        raise ModelError(
            f"{file.path}: tensor {name!r} of shape {tensor.shape} does not fill blocks of {block}"
        )
    row_bytes = tensor.shape[-1] // block * block_bytes
    rows = tensor.size // tensor.shape[-1]
    if tensor.offset + rows * row_bytes > file.path.stat().st_size:
        raise ModelError(
            f"{file.path} is cut off: tensor {name!r} ends after the file does", hint="Download it again."
        )
    raw = np.memmap(file.path, np.uint8, "r", tensor.offset, (*tensor.shape[:-1], row_bytes))
    try:
        return np.array(dequantize(np.asarray(raw), kind), dtype=np.float32, order="C")
    except NotImplementedError:
        raise ModelError(
            f"{file.path}: tensors of type {kind.name} cannot be de-quantised for training",
            hint="Use another quantisation of the model (Q8_0, Q4_K_M, F16 …).",
        ) from None


class _HeaderReader:
    """Reads a header from beginning to end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.offset = path, data, 0
        self.size = len(data)

    def read(self) -> GgufFile:
        if self.take(4) != b"GGUF":
            raise ModelError(f"{self.path} is not a GGUF file")
        version = self.number("I")
        if version not in (2, 3):
            self.fail(f"has GGUF version {version}; 2 and 3 (little-endian) are supported")
        tensor_count, key_count = self.number("Q"), self.number("Q")
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = self.string()
            metadata[key] = self.value(self.number("I"))
        if metadata.get("split.count", 0) not in (0, 1):
            self.fail("is one part of a split file", hint="Join the parts with llama-gguf-split --merge.")
        tensors = [self.tensor() for _ in range(tensor_count)]
        return GgufFile(self.path, metadata, self.with_file_offsets(tensors, metadata))

    def with_file_offsets(self, tensors: list[TensorInfo], metadata: dict[str, Any]) -> dict[str, TensorInfo]:
        """The tensors with offsets from the start of the file, not from the end of the header."""
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            self.fail(f"has the invalid alignment {alignment!r}")
        start = -(-self.offset // alignment) * alignment
        return {t.name: TensorInfo(t.name, t.shape, t.type, start + t.offset) for t in tensors}

    def fail(self, what: str, *, hint: str | None = None) -> NoReturn:
        raise ModelError(f"{self.path} {what}", hint=hint)

    def take(self, count: int) -> bytes:
        end = self.offset + count
        if end > self.size:
            self.fail(f"is cut off or damaged at byte {self.offset}", hint="Download it again.")
        data = self.data[self.offset : end]
        self.offset = end
        return data

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            inner, count = self.number("I"), self.number("Q")
            if inner in _SCALARS:
                code = _SCALARS[inner]
                return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(code))))
            # A string takes 8 bytes or more, so a larger count is damage and would loop for hours.
            if inner == _STRING and count <= self.size:
                return [self.string() for _ in range(count)]
        return self.fail(f"has a value of unknown type {kind} at byte {self.offset}")

    def tensor(self) -> TensorInfo:
        name, dimensions = self.string(), self.number("I")
        if not 1 <= dimensions <= _MAX_DIMS:
            self.fail(f"declares tensor {name!r} with {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        if 0 in shape:
            self.fail(f"declares that tensor {name!r} is empty")
        return TensorInfo(name, shape, self.number("I"), self.number("Q"))
