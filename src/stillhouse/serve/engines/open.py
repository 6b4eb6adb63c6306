"""Opens the engine for a model reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillhouse.serve.engines.base import Engine
from stillhouse.serve.engines.llama_cpp import LlamaEngine
from stillhouse.serve.engines.pytorch import SLOTS, TorchEngine

if TYPE_CHECKING:
    from stillhouse.models import Marker


def open_engine(reference: str, marker: Marker | None = None, *, slots: int = SLOTS) -> Engine:
    """Loads a model: llama.cpp for GGUF files, PyTorch for safetensors. Takes seconds to minutes.

    Args:
        marker: watermark for every answer; not for GGUF, because llama.cpp does its own sampling.
        slots: generations that run at once (PyTorch only); with fewer, each may have a longer context.

    Raises:
        StillhouseError: as :func:`stillhouse.models.load_weights`.
    """
    from stillhouse.models import (
        IsolatedTemplate,
        cpu_has_bfloat16,
        load_weights,
        open_llama_cpp,
        parse_reference,
    )

    # A chat template is a program by the model's author: IsolatedTemplate runs it in a limited process.
    if parse_reference(reference).is_gguf:
        assert marker is None
        model = open_llama_cpp(reference, seed=0, cache_prompts=True)
        model.prompts.template = IsolatedTemplate.of(model.prompts.template)
        return LlamaEngine(model)
    weights = load_weights(reference, dtype="bfloat16" if cpu_has_bfloat16() else "float32")
    weights.template = IsolatedTemplate.of(weights.template)
    return TorchEngine(weights, slots=slots, marker=marker)
