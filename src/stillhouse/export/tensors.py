"""The weights as llama.cpp keeps them: its names, its order of rows, its norms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stillhouse.errors import ModelError
from stillhouse.export.architecture import rope_factors
from stillhouse.export.source import Source

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ExportedTensor:
    """A tensor of the file to be written."""

    name: str
    shape: tuple[int, ...]
    """Row-major, as numpy counts."""
    read: Callable[[], np.ndarray]
    """Its values in float32."""


def exported_tensors(source: Source, architecture: str) -> Iterator[ExportedTensor]:
    """Every tensor of the file, embeddings first, then layer by layer.

    Raises:
        ModelError: a parameter has no place in the architecture, or (when read) is not finite or has
            another shape than the configuration says.
    """
    import gguf

    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, source.config.num_hidden_layers)
    if (factors := rope_factors(source.config)) is not None:
        yield ExportedTensor("rope_freqs.weight", factors.shape, lambda: factors)
    for key, shape in source.shapes.items():
        target = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ModelError(f"the weights {key} have no place in a {architecture} GGUF file")
        yield ExportedTensor(target, shape, _reader(source, architecture, key, shape))


def permute_rows(heads: int, rows: int) -> np.ndarray:
    """Order [rows] of Llama's query and key rows in the file: row r is row ``order[r]`` of the model.

    transformers rotates the two halves of a head, llama.cpp neighbouring pairs; the inverse of
    `models.gguf_config.unpermute_rows`.
    """
    half = rows // heads // 2
    return np.arange(rows).reshape(heads, 2, half).swapaxes(1, 2).ravel()


def _reader(source: Source, architecture: str, key: str, shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        values = _checked(source, key, shape, source.weights[key]())
        if architecture == "llama" and ("q_proj." in key or "k_proj." in key):
            config = source.config
            heads = config.num_attention_heads if "q_proj." in key else config.num_key_value_heads
            return values[permute_rows(heads, shape[0])]
        if architecture.startswith("gemma") and key.endswith("norm.weight"):
            return values + 1  # Gemma multiplies by 1 + weight; llama.cpp by what the file says
        return values

    return read


def _checked(source: Source, key: str, shape: tuple[int, ...], value: Tensor) -> np.ndarray:
    if tuple(value.shape) != shape:
        raise ModelError(
            f"{source.path}: {key} has the shape {tuple(value.shape)}, but config.json says {shape}",
            hint="Copy the model again; config.json and weights are of two models.",
        )
    values = value.float().numpy()
    if not np.isfinite(values).all():
        raise ModelError(f"{source.path}: {key} holds values that are not finite")
    return values
