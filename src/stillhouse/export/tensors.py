"""The tensors of a GGUF file: llama.cpp's names, and readers of their values as llama.cpp stores them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stillhouse.errors import ModelError
from stillhouse.export.rope import rope_tensors
from stillhouse.export.source import EMBEDDING, OUTPUT, Source
from stillhouse.models import Architecture, tensor_names, to_gguf

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
    settings = source.config.to_dict()
    for name, values in rope_tensors(source.config).items():
        yield ExportedTensor(name, values.shape, lambda values=values: values)
    parameters = {key: key for key in source.shapes}
    if architecture.needs_output:
        parameters.setdefault(OUTPUT, EMBEDDING)
    for parameter, key in parameters.items():
        names = tensor_names(architecture, parameter)
        if not names:
            raise ModelError(f"a {architecture.name} GGUF file has no tensor for the weights {parameter}")
        shapes = _shapes(architecture, names, source.shapes[key], settings)
        for part, (name, shape) in enumerate(zip(names, shapes, strict=True)):

            def read(key: str = key, names: list[str] = names, part: int = part) -> np.ndarray:
                return to_gguf(architecture, names, read_weights(source, key), settings)[part]

            yield ExportedTensor(name, shape, read)


def _shapes(
    architecture: Architecture, names: list[str], shape: tuple[int, ...], settings: dict[str, object]
) -> list[tuple[int, ...]]:
    """The shapes of GGUF's tensors of one parameter."""
    # A view of one number has the shape without the memory.
    empty = np.broadcast_to(np.float32(-1), shape)
    return [values.shape for values in to_gguf(architecture, names, empty, settings)]


def read_weights(source: Source, key: str) -> np.ndarray:
    """The values of a parameter in float32.

    Raises:
        ModelError: the shape is not the configuration's, or a value is not finite.
    """
    value: Tensor = source.weights[key]()
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
