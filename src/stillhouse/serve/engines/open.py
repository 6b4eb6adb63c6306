"""Opens the engine for a model reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stillhouse.serve.engines.base import Engine
from stillhouse.serve.engines.llama_cpp import LlamaEngine
from stillhouse.serve.engines.pytorch import KEPT, SLOTS, TorchEngine, torch_context_length

if TYPE_CHECKING:
    from stillhouse.models import Marker, Weights


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
    return torch_engine(weights, slots=slots, marker=marker)


def torch_engine(weights: Weights, *, slots: int = SLOTS, marker: Marker | None = None) -> Engine:
    """An engine over weights in memory, which are not copied; their template runs in a limited process."""
    from stillhouse.models import IsolatedTemplate

    isolated = replace(weights, template=IsolatedTemplate.of(weights.template))
    return TorchEngine(isolated, slots=slots, marker=marker)


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of a model, as its files tell them."""

    context_length: int
    """Tokens of a prompt and its answer that are served."""
    trained_context_length: int | None
    vocab_size: int | None
    hidden_size: int | None
    parameters: int | None
    size_bytes: int | None


def model_sizes(reference: str) -> ModelSizes | None:
    """Reads a model's sizes without loading it; None where its files are not on this machine.

    Raises:
        StillhouseError: as :func:`stillhouse.models.describe`.
    """
    from stillhouse.models import cpu_has_bfloat16, describe, parse_reference, read_gguf, slot_context

    parsed = parse_reference(reference)
    if parsed.path is None:  # a model of the hub: reading its files could mean to download them
        return None
    info = describe(reference)
    if parsed.is_gguf:
        context_length = slot_context(read_gguf(parsed.path))
    else:
        text_config = info.config.get("text_config", info.config)
        try:
            context_length = torch_context_length(
                text_config, 2 if cpu_has_bfloat16() else 4, SLOTS + KEPT + 1
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            return None
    return ModelSizes(
        context_length, info.context_length, info.vocab_size, info.hidden_size, info.parameters,
        info.size_bytes,
    )  # fmt: skip
