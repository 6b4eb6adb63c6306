"""Chooses the type of each tensor and quantises it.

Types are chosen as llama.cpp's `llama-quantize` does without an importance matrix
(`llama_tensor_get_type_impl` in llama-quant.cpp): matrices get the type that the quantisation is named after,
output weights more bits, and in the `_m` quantisations some value and down projections, too. Norms, biases,
routers and convolutions stay float32. A matrix whose rows are not a multiple of 256 falls back from a K-quant
to the next type with blocks of 32.

ggml itself quantises, through functions that the xllamacpp library exports (`llama_model_quantize` is not
among them). Without that library the `gguf` package quantises the types that it supports.
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
    from gguf import GGMLQuantizationType as GgmlType


@dataclass(frozen=True)
class Quantisation:
    """A quantisation that the command line names."""

    kind: str
    """Name of ggml's type of most matrices."""
    file_type: int
    """`general.file_type`, llama.cpp's number of the quantisation."""
    more_bits: bool = False
    """Whether some layers' value and down projections get Q6_K."""


QUANTISATIONS = {
    "f32": Quantisation("F32", 0),
    "f16": Quantisation("F16", 1),
    "bf16": Quantisation("BF16", 32),
    "q8_0": Quantisation("Q8_0", 7),
    "q6_k": Quantisation("Q6_K", 18),
    "q5_k_m": Quantisation("Q5_K", 17, more_bits=True),
    "q4_k_m": Quantisation("Q4_K", 15, more_bits=True),
    "q4_0": Quantisation("Q4_0", 2),
}
_KEPT_FOR_OUTPUT = ("F32", "F16", "BF16", "Q8_0")  # types that need no more bits for the output weights
_WITHOUT_GGML = ("f32", "f16", "bf16", "q8_0", "q4_0")  # types that the gguf package supports
_FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # blocks of 256 numbers -> blocks of 32
_FLOAT32 = ("ffn_gate_inp.", "ssm_conv1d.")  # routers are sensitive, and ggml's convolution needs float32
_MORE_BITS = {"Q4_K": "Q5_K", "Q5_K": "Q6_K"}  # for joined query, key and value weights
_MIXTRAL_EXPERTS = 8  # llama.cpp's rules for mixtures of so many experts
_LAYER = re.compile(r"blk\.(\d+)\.")


def require_type(name: str) -> None:
    """Checks that a type is available.

    Raises:
        MissingExtraError: the type needs the xllamacpp package.
    """
    if name not in _WITHOUT_GGML and _ggml() is None:
        raise MissingExtraError(
            f"{name} needs llama.cpp's library, which is not installed",
            hint=f"pip install 'stillhouse[gguf]', or choose from {', '.join(_WITHOUT_GGML)}.",
        )


def tensor_types(tensors: Sequence[ExportedTensor], quantisation: Quantisation) -> list[GgmlType]:
    """The ggml type of each tensor."""
    from gguf import GGMLQuantizationType as GgmlType

    layers = 1 + max((int(m[1]) for t in tensors if (m := _LAYER.match(t.name))), default=0)
    output = "output.weight" if any(t.name == "output.weight" for t in tensors) else "token_embd.weight"
    experts = next((t.shape[0] for t in tensors if t.name.endswith("ffn_gate_inp.weight")), 0)
    return [GgmlType[_type_name(tensor, quantisation, layers, output, experts)] for tensor in tensors]


def stored_bytes(shape: Sequence[int], kind: GgmlType) -> int:
    """Size of a tensor in the file."""
    from gguf import GGML_QUANT_SIZES

    block, block_bytes = GGML_QUANT_SIZES[kind]
    return int(np.prod(shape)) // block * block_bytes


def quantise(values: np.ndarray, kind: GgmlType, name: str) -> np.ndarray:
    """``values`` quantised, as the bytes [n] of ``kind``.

    Raises:
        ModelError: a value exceeds the range of the type.
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
    # ggml reads raw pointers: the array must be contiguous float32.
    values = np.ascontiguousarray(values, np.float32)
    stored = np.empty(stored_bytes(values.shape, kind), np.uint8)
    columns = values.shape[-1]
    written = library.ggml_quantize_chunk(
        int(kind), values.ctypes.data, stored.ctypes.data, 0, values.size // columns, columns, None
    )
    if written != stored.size or not library.ggml_validate_row_data(int(kind), stored.ctypes.data, written):
        raise ModelError(f"{name} could not be stored as {kind.name}", hint="Choose bf16, f32 or q8_0.")
    return stored


def _type_name(
    tensor: ExportedTensor, quantisation: Quantisation, layers: int, output: str, experts: int
) -> str:
    """The name of one tensor's ggml type."""
    name, kind = tensor.name, quantisation.kind
    if len(tensor.shape) < 2 or any(part in name for part in _FLOAT32):
        return "F32"
    if kind in _KEPT_FOR_OUTPUT:
        pass
    elif name == output:
        kind = "Q6_K" if _ggml() is not None else "Q8_0"
    elif experts == _MIXTRAL_EXPERTS and any(part in name for part in ("attn_v.", "attn_k.")):
        kind = "Q8_0"  # beside the experts these weigh nothing
    elif experts == _MIXTRAL_EXPERTS and "attn_output." in name and kind == "Q4_K":
        kind = "Q5_K"
    elif quantisation.more_bits and "attn_qkv." in name:
        kind = _MORE_BITS[kind]
    elif quantisation.more_bits and any(part in name for part in ("attn_v.", "ffn_down")):
        layer = int(_LAYER.match(name)[1])  # pyright: ignore[reportOptionalSubscript]
        # llama.cpp's use_more_bits: the first and the last eighth, and every third layer between.
        if layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2:
            kind = "Q6_K"
    return _with_fitting_blocks(kind, tensor.shape[-1])


def _with_fitting_blocks(kind: str, columns: int) -> str:
    """``kind``, or the nearest type whose blocks divide rows of ``columns`` numbers."""
    if kind in _FALLBACK and columns % 256:
        kind = _FALLBACK[kind]
    return "F16" if kind.startswith("Q") and columns % 32 else kind


@functools.cache
def _ggml() -> ctypes.CDLL | None:
    """ggml's functions in the xllamacpp library; None where it is not installed or does not export them."""
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
