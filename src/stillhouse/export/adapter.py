"""Merges a PEFT adapter into its base model, and checks that the result computes the same.

Where output weights are tied to the embedding, merging a change of one would change the other. So the base
is untied first. Merging takes the memory of the whole model in float32.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.errors import MissingExtraError, ModelError, ModelNotFoundError
from stillhouse.models import Weights, load_weights

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER_CONFIG = "adapter_config.json"
TEXT = "The model answers in the words of its adapter; 1, 2, 3 and no more.\n"
TOLERANCE = 1e-3
"""Largest difference of log-probabilities that merging may cause. In float32 it causes about 1e-5."""


def merged_adapter(path: Path) -> Weights:
    """The base model of the adapter in ``path`` with the adapter merged into it.

    Raises:
        MissingExtraError: peft is not installed.
        ModelError: the adapter is damaged, does not fit, or computes something else once it is merged.
        ModelNotFoundError: the base model is not on this machine.
    """
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError(
            f"{path} is an adapter; merging it needs the package peft",
            hint='Install it with: pip install "stillhouse[lora]"',
        ) from error
    if not (path / "adapter_model.safetensors").is_file():
        raise ModelError(f"{path} has no adapter_model.safetensors; adapters in pickles are refused")
    base = load_weights(_base(path))
    output: Any = base.model.get_output_embeddings()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from peft, of tied weights and of transformers' own changes
            adapted: Any = peft.PeftModel.from_pretrained(base.model, str(path)).eval()
            expected = _logprobs(adapted, base)
            _untie(output)
            base.model = adapted.merge_and_unload(safe_merge=True)
    except Exception as error:  # peft raises what torch, safetensors and transformers raise
        raise ModelError(
            f"{path} does not fit its base model: {error}", hint="Is base_model_name_or_path the right model?"
        ) from error
    difference = (_logprobs(base.model, base) - expected).abs().max().item()
    if not difference <= TOLERANCE:
        raise ModelError(
            f"{path}: merged into its base model, the adapter computes something else "
            f"(log-probabilities differ by up to {difference:.3g})",
            hint="Train it again without the embedding and output layers among its target modules.",
        )
    return base


def _untie(output: Any) -> None:
    """Gives the output layer weights of its own."""
    import torch

    output.weight = torch.nn.Parameter(output.weight.detach().clone(), requires_grad=False)


def _logprobs(model: Any, weights: Weights) -> Tensor:
    """Log-probabilities [T, V] of :data:`TEXT`."""
    import torch

    ids = weights.tokenizer.encode(TEXT, return_tensors="pt")
    with torch.no_grad():
        return model(ids).logits[0].log_softmax(-1)


def _base(path: Path) -> str:
    """The base model that the adapter names. It must be on this machine."""
    try:
        named = json.loads((path / ADAPTER_CONFIG).read_text("utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ModelError(f"{path / ADAPTER_CONFIG} names no base model") from error
    for candidate in (Path(str(named)), path / str(named)):
        if candidate.exists():
            return str(candidate)
    raise ModelNotFoundError(
        f"{path}: the base model {named!r} is not on this machine",
        hint="Download it and write its directory into adapter_config.json as base_model_name_or_path.",
    )
