"""Initializes a student with random weights from a transformers configuration in the recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from stillhouse.distill.students.decoder import root_message
from stillhouse.errors import OutOfMemoryError, RecipeError, is_out_of_memory
from stillhouse.recipe.suggest import did_you_mean

VOCABULARY_MULTIPLE = 64
"""The vocabulary is padded to a multiple of this, for which matrix kernels are faster."""
LEGACY_KEYS = ("rope_theta", "rope_scaling")
"""Keys that transformers still accepts although its configurations no longer list them."""


def scratch_config(entries: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    """The recipe's configuration, with defaults from the tokenizer.

    ``vocab_size`` defaults to the tokenizer's size padded to a multiple of 64; the ids of the
    special tokens default to the tokenizer's.

    Raises:
        RecipeError: ``model_type`` is missing or unknown, a key is unknown, a value has the wrong type,
            or the vocabulary is smaller than the tokenizer's.
    """
    needed = vocabulary_size(tokenizer)
    padded = -(-needed // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = scratch_settings({"vocab_size": padded, **special, **entries})
    if config.vocab_size < needed:
        raise RecipeError(
            f"student.config: vocab_size {config.vocab_size} is less than the tokenizer's {needed}",
            hint=f"Leave vocab_size out to get {padded}.",
        )
    return config


def scratch_settings(entries: Mapping[str, Any]) -> PreTrainedConfig:
    """The recipe's configuration as it is, without a tokenizer's defaults.

    Raises:
        RecipeError: ``model_type`` is missing or unknown, a key is unknown, or a value has the wrong type.
    """
    model_type, kind = _model_type(entries)
    known = {field.name for field in dataclasses.fields(kind)} | set(kind.attribute_map) | set(LEGACY_KEYS)
    for key in entries:
        if key != "model_type" and key not in known:
            raise RecipeError(
                f"student.config: {model_type} has no setting {key!r}",
                hint=did_you_mean(key, known),
            )
    settings = {**entries, "dtype": "float32"}
    del settings["model_type"]
    try:
        return AutoConfig.for_model(model_type, **settings)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise RecipeError(f"student.config: {root_message(error)}") from error


def build_scratch(
    entries: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast, seed: int
) -> PreTrainedModel:
    """Initializes a float32 model of that configuration; the same seed gives the same weights.

    The global random generators are not changed.

    Raises:
        RecipeError: see :func:`scratch_config`; or transformers cannot build the model.
    """
    config = scratch_config(entries, tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        except (ValueError, RuntimeError, ZeroDivisionError) as error:
            if is_out_of_memory(error):
                raise OutOfMemoryError(
                    "a student of this size does not fit in memory", hint="Make student.config smaller."
                ) from error
            raise RecipeError(f"student.config: {root_message(error)}") from error
    return model.eval()


def vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """The number of embedding rows that the tokenizer needs (its largest id plus one)."""
    return max(tokenizer.get_vocab().values()) + 1


def _model_type(entries: Mapping[str, Any]) -> tuple[str, type[PreTrainedConfig]]:
    model_type = entries.get("model_type")
    if not isinstance(model_type, str):
        raise RecipeError(
            "student.config: model_type is missing", hint="Name an architecture, e.g. `model_type: qwen3`."
        )
    if model_type not in CONFIG_MAPPING:
        hint = did_you_mean(model_type, CONFIG_MAPPING.keys())
        raise RecipeError(f"student.config: transformers knows no model_type {model_type!r}", hint=hint)
    kind = CONFIG_MAPPING[model_type]
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise RecipeError(f"student.config: {model_type} is not a causal language model")
    return model_type, kind
