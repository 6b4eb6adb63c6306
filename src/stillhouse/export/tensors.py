"""The tensors of a GGUF file: llama.cpp's names, and readers of their values as llama.cpp stores them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stillhouse.errors import ModelError
from stillhouse.export.header import rope_factors
from stillhouse.export.source import Source
from stillhouse.models import Architecture, to_gguf_values

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ExportedTensor:
    """A tensor of the file to be written."""

    name: str
    shape: tuple[int, ...]
    """Row-major, as in numpy."""
    read: Callable[[], np.ndarray]
    """Reads its values in float32."""


def exported_tensors(source: Source, architecture: Architecture) -> Iterator[ExportedTensor]:
    """Every tensor of the file, embeddings first, then layer by layer.

    Raises:
        ModelError: the architecture has no tensor for a parameter, or (when read) is not finite or has
            another shape than the configuration says.
    """
    import gguf

    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    names = gguf.get_tensor_name_map(arch, source.config.num_hidden_layers)
    if (factors := rope_factors(source.config)) is not None:
        yield ExportedTensor("rope_freqs.weight", factors.shape, lambda: factors)
    for key, shape in source.shapes.items():
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ModelError(f"a {architecture.name} GGUF file has no tensor for the weights {key}")
        yield ExportedTensor(name, shape, _reader(source, architecture, key, name))


def _reader(source: Source, architecture: Architecture, key: str, name: str) -> Callable[[], np.ndarray]:
    config = source.config

    def read() -> np.ndarray:
        values = _checked(source, key, source.weights[key]())
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        return to_gguf_values(architecture, name, values, heads=heads, kv_heads=kv_heads)

    return read


def _checked(source: Source, key: str, value: Tensor) -> np.ndarray:
    if tuple(value.shape) != source.shapes[key]:
        raise ModelError(
            f"{source.path}: {key} has the shape {tuple(value.shape)}, "
            f"but config.json says {source.shapes[key]}",
            hint="Copy the model again; config.json and weights are of two models.",
        )
    values = value.float().numpy()
    if not np.isfinite(values).all():
        raise ModelError(f"{source.path}: {key} holds values that are not finite")
    return values
