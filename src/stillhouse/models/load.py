"""Loads a model by its reference, or takes one that is in memory already."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stillhouse.errors import ModelError, UsageError
from stillhouse.hashing import sha256_bytes, sha256_json
from stillhouse.models.reference import parse_reference
from stillhouse.models.weights import Weights, load_weights, require_rows, template_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IN_MEMORY = "in memory"
"""The reference of a model that was not loaded here."""
_DIGEST_ENTRIES = 4096


def load(
    model: str | os.PathLike[str] | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
) -> Weights:
    """Loads a model with its tokenizer and chat template, or wraps your own.

    Example::

        teacher = st.load("hub:org/large", dtype="bfloat16")
        student = st.load(my_model, my_tokenizer)
        student.model, student.tokenizer   # the same objects, to use as in transformers

    Args:
        model: a directory, a run's directory (its student), `file.gguf`, `embedded:smollm2`, `hub:org/name`;
            or a causal language model of transformers, which is not copied, moved or cast, but put into eval
            mode.
        tokenizer: of a model in memory; a fast one, with a chat template unless the model is a base model.
        dtype: of the weights that are loaded. A model that is to be trained needs float32, the default.

    Raises:
        ModelNotFoundError: the reference names no model.
        ModelError: the model is damaged, not supported, or stored as pickles; or its tokenizer does not fit.
        CapabilityError: the reference is an API, which has no weights (`collect` takes it by its name).
        UsageError: a model in memory has no tokenizer, or a reference comes with one.
    """
    if isinstance(model, str | os.PathLike):
        if tokenizer is not None:
            raise UsageError(
                f"{os.fspath(model)} brings its own tokenizer",
                hint="Pass a tokenizer only with a model that is in memory.",
            )
        return load_weights(os.fspath(model), dtype=dtype)
    return _wrap(model, tokenizer)


def _wrap(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> Weights:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    if not isinstance(model, PreTrainedModel):
        raise UsageError(
            f"a {type(model).__name__} is not a model",
            hint="Pass a reference, or a causal language model of transformers.",
        )
    if tokenizer is None:
        raise UsageError("a model in memory needs its tokenizer", hint="st.load(model, tokenizer)")
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(f"a {type(tokenizer).__name__} is not a fast tokenizer of transformers")
    require_rows(Path(IN_MEMORY), tokenizer, model.config.get_text_config().vocab_size)
    name = getattr(model.config, "_name_or_path", "") or IN_MEMORY
    model.eval()
    return Weights(name, model, tokenizer, template_of(tokenizer), _digest(model))


def model_and_reference(model: str | os.PathLike[str] | Weights) -> tuple[Weights, Path | None]:
    """The weights, loaded if need be, and the path of their files where they came from a reference."""
    if isinstance(model, Weights):
        return model, None
    return load_weights(os.fspath(model)), parse_reference(os.fspath(model)).path


def _digest(model: PreTrainedModel) -> str:
    """SHA-256 of a model in memory: of names, shapes and evenly spaced entries of its parameters."""
    summaries = []
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        entries = flat[:: max(1, len(flat) // _DIGEST_ENTRIES)].float().cpu().numpy()
        summaries.append([name, list(parameter.shape), sha256_bytes(entries.tobytes())])
    return sha256_json(summaries)
