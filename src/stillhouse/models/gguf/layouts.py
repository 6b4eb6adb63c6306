"""How GGUF stores the values of a tensor where it does not store them as transformers does.

Facts from llama.cpp's `convert_hf_to_gguf.py` and the graphs in its `src/models`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Settings = Mapping[str, Any]
"""The fields of a transformers configuration."""
Change = Callable[["np.ndarray", Settings], "np.ndarray"]


@dataclass(frozen=True)
class Layout:
    """A change of a tensor's values or shape, in both directions."""

    to_gguf: Change
    """From transformers' values and the model's settings to GGUF's values."""
    from_gguf: Change


def chain(*layouts: Layout) -> Layout:
    """Several layouts, in the order in which they are applied on the way to GGUF."""

    def to_gguf(values: np.ndarray, settings: Settings) -> np.ndarray:
        for layout in layouts:
            values = layout.to_gguf(values, settings)
        return values

    def from_gguf(values: np.ndarray, settings: Settings) -> np.ndarray:
        for layout in reversed(layouts):
            values = layout.from_gguf(values, settings)
        return values

    return Layout(to_gguf, from_gguf)


def interleaved_heads(heads: str) -> Layout:
    """Rows of query or key weights for llama.cpp's rotation of neighbouring pairs.

    transformers rotates the two halves of a head. A file whose rows do not divide evenly among the heads
    gives fewer rows, which the caller finds to be missing.

    Args:
        heads: the setting that holds the number of heads.
    """
    return Layout(
        lambda values, settings: values[interleaved_rows(settings[heads], len(values))],
        lambda values, settings: values[separated_rows(settings[heads], len(values))],
    )


def interleaved_rows(heads: int, rows: int) -> list[int]:
    """Row r of the file is row ``order[r]`` of the model: ``half * dim/2 + i`` moves to ``2 * i + half``."""
    dim = rows // heads
    return [
        head * dim + half * (dim // 2) + i
        for head in range(heads)
        for i in range(dim // 2)
        for half in range(2)
    ]


def separated_rows(heads: int, rows: int) -> list[int]:
    """The inverse of :func:`interleaved_rows`: row r of the model is row ``order[r]`` of the file."""
    dim = rows // heads
    return [head * dim + 2 * i + half for head in range(heads) for half in range(2) for i in range(dim // 2)]


PLUS_ONE = Layout(lambda values, _: values + 1, lambda values, _: values - 1)
"""Norms that multiply by 1 + weight; llama.cpp multiplies by what the file holds."""


def _minus_exp(values: np.ndarray, _: Settings) -> np.ndarray:
    import numpy as np

    return -np.exp(values)


def _log_minus(values: np.ndarray, _: Settings) -> np.ndarray:
    import numpy as np

    return np.log(-values)


MINUS_EXP = Layout(_minus_exp, _log_minus)
"""Decay rates that transformers stores as a logarithm."""


def without_axis(axis: int) -> Layout:
    """A tensor with an axis of size 1 that GGUF leaves out."""

    def from_gguf(values: np.ndarray, _: Settings) -> np.ndarray:
        import numpy as np

        return np.expand_dims(values, axis)

    return Layout(lambda values, _: values.squeeze(axis), from_gguf)


def tiled_value_heads(*, axis: int = 0, keys_first: bool = False, single: bool = False) -> Layout:
    """The value heads of linear attention: the first of each key head, then the second of each, …

    transformers stores all value heads of the first key head, then those of the second. ggml repeats the key
    heads as a whole, so that value head v uses key head v mod the number of key heads.

    Args:
        keys_first: whether queries and keys come before the values, on the same axis.
        single: whether a value head has one entry instead of `linear_value_head_dim`.
    """

    def order(size: int, settings: Settings, *, back: bool) -> Sequence[int]:
        import numpy as np

        keys, values = settings["linear_num_key_heads"], settings["linear_num_value_heads"]
        first = 2 * keys * settings["linear_key_head_dim"] if keys_first else 0
        width = 1 if single else settings["linear_value_head_dim"]
        shape = (values // keys, keys, width) if back else (keys, values // keys, width)
        tiled = np.arange(size - first).reshape(shape).swapaxes(0, 1).reshape(-1) + first
        return [*range(first), *tiled.tolist()]

    def change(values: np.ndarray, settings: Settings, *, back: bool) -> np.ndarray:
        return values.take(order(values.shape[axis], settings, back=back), axis)

    return Layout(
        lambda values, settings: change(values, settings, back=False),
        lambda values, settings: change(values, settings, back=True),
    )
