"""How each tensor is stored, and the bytes of it.

Types are chosen as llama.cpp's `llama-quantize` chooses them without an importance matrix
(`llama_tensor_get_type_impl` in llama-quant.cpp): matrices get the type of the mix, the output
weights more bits, and in the `_m` mixes every third value and down projection too. Norms and biases
stay float32. A matrix whose rows are no multiple of 256 falls back from a K-quant to the
next type with blocks of 32.

The bytes come from ggml itself, whose functions the xllamacpp library exports (it does not export
`llama_model_quantize`). Without it the `gguf` package makes the types that it can.
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stillhouse.errors import MissingExtraError, ModelError
from stillhouse.export.tensors import ExportedTensor

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType as Kind


@dataclass(frozen=True)
class Mix:
    """What a name on the command line stands for."""

    kind: str
    """ggml's type of most matrices."""
    file_type: int
    """`general.file_type`, llama.cpp's number of the mix."""
    more_bits: bool = False
    """Whether some layers' value and down projections get Q6_K."""


MIXES = {
    "f32": Mix("F32", 0),
    "f16": Mix("F16", 1),
    "bf16": Mix("BF16", 32),
    "q8_0": Mix("Q8_0", 7),
    "q6_k": Mix("Q6_K", 18),
    "q5_k_m": Mix("Q5_K", 17, more_bits=True),
    "q4_k_m": Mix("Q4_K", 15, more_bits=True),
    "q4_0": Mix("Q4_0", 2),
}
_WHOLE = ("F32", "F16", "BF16", "Q8_0")  # the output weights need no better type than these
_WITHOUT_LLAMA = ("f32", "f16", "bf16", "q8_0", "q4_0")  # what the gguf package can make
_FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # 256 numbers a block -> 32
_LAYER = re.compile(r"blk\.(\d+)\.")


def require_type(name: str) -> None:
    """Refuses a type that cannot be made here.

    Raises:
        MissingExtraError: it takes the xllamacpp package.
    """
    if name not in _WITHOUT_LLAMA and _ggml() is None:
        raise MissingExtraError(
            f"{name} is quantised by llama.cpp's library, which is not here",
            hint=f"pip install 'stillhouse[gguf]', or choose from {', '.join(_WITHOUT_LLAMA)}.",
        )


def kinds_of(tensors: Sequence[ExportedTensor], mix: Mix) -> list[Kind]:
    """The ggml type of each tensor."""
    from gguf import GGMLQuantizationType as Kind

    layers = 1 + max((int(m[1]) for t in tensors if (m := _LAYER.match(t.name))), default=0)
    output = "output.weight" if any(t.name == "output.weight" for t in tensors) else "token_embd.weight"
    return [Kind[_kind(tensor, mix, layers, output)] for tensor in tensors]


def stored_bytes(shape: Sequence[int], kind: Kind) -> int:
    """Size of a tensor in the file."""
    from gguf import GGML_QUANT_SIZES

    block, block_bytes = GGML_QUANT_SIZES[kind]
    return int(np.prod(shape)) // block * block_bytes


def quantise(values: np.ndarray, kind: Kind, name: str) -> np.ndarray:
    """``values`` as the bytes [n] of ``kind``.

    Raises:
        ModelError: a value is too large for the type.
    """
    from gguf import quants

    if kind.name in ("F32", "F16") or (library := _ggml()) is None:
        with np.errstate(over="ignore"):
            stored = quants.quantize(np.ascontiguousarray(values), kind)
        if kind.name == "F16" and not np.isfinite(stored).all():
            raise ModelError(
                f"{name} holds values beyond float16 ({np.abs(values).max():.4g})",
                hint="Choose bf16, f32 or q8_0.",
            )
        return stored.reshape(-1).view(np.uint8)
    values = np.ascontiguousarray(values, np.float32)
    stored = np.empty(stored_bytes(values.shape, kind), np.uint8)
    columns = values.shape[-1]
    written = library.ggml_quantize_chunk(
        int(kind), values.ctypes.data, stored.ctypes.data, 0, values.size // columns, columns, None
    )
    if written != stored.size or not library.ggml_validate_row_data(int(kind), stored.ctypes.data, written):
        raise ModelError(f"{name} could not be stored as {kind.name}", hint="Choose bf16, f32 or q8_0.")
    return stored


def _kind(tensor: ExportedTensor, mix: Mix, layers: int, output: str) -> str:
    """The name of one tensor's type."""
    if len(tensor.shape) < 2:
        return "F32"
    kind = mix.kind
    if tensor.name == output and kind not in _WHOLE:
        kind = "Q6_K" if _ggml() is not None else "Q8_0"
    elif mix.more_bits and any(part in tensor.name for part in ("attn_v.", "ffn_down.")):
        layer = int(_LAYER.match(tensor.name)[1])  # pyright: ignore[reportOptionalSubscript]
        if layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2:
            kind = "Q6_K"
    return _fitting(kind, tensor.shape[-1])


def _fitting(kind: str, columns: int) -> str:
    """``kind``, or the nearest one whose blocks fill rows of ``columns`` numbers."""
    if kind in _FALLBACK and columns % 256:
        kind = _FALLBACK[kind]
    return "F16" if kind.startswith("Q") and columns % 32 else kind


@functools.cache
def _ggml() -> ctypes.CDLL | None:
    """ggml's functions inside the xllamacpp library; None where it is not installed or hides them."""
    try:
        from xllamacpp import xllamacpp  # pyright: ignore[reportAttributeAccessIssue]  (compiled)
    except ImportError:
        return None
    library = ctypes.CDLL(xllamacpp.__file__)
    try:
        quantise_chunk, validate = library.ggml_quantize_chunk, library.ggml_validate_row_data
    except AttributeError:
        return None
    long, pointer = ctypes.c_int64, ctypes.c_void_p
    quantise_chunk.argtypes = [ctypes.c_int, pointer, pointer, long, long, long, pointer]
    quantise_chunk.restype = ctypes.c_size_t
    validate.argtypes, validate.restype = [ctypes.c_int, pointer, ctypes.c_size_t], ctypes.c_bool
    return library
