"""Saves a student as a plain transformers directory.

Writes safetensors weights, configuration, generation configuration, tokenizer and chat template, which
transformers 4 and 5 and the programs of their time read; the pipeline writes the model card.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import GENERATION_CONFIG_NAME, logging as noise

from stillhouse.distill.students.lora import merged
from stillhouse.distill.students.version_4 import add_version_4_keys
from stillhouse.errors import StorageError
from stillhouse.files import atomic_directory
from stillhouse.models import ChatTemplate, Weights


def save_student(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    template: ChatTemplate,
    directory: str | Path,
    *,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
) -> None:
    """Writes the student to ``directory``, replacing its content; adapters are merged first.

    ``model`` is not changed. Everything is written to a temporary directory, which is then renamed, so
    ``directory`` never holds an incomplete student.

    Args:
        dtype: type of the saved parameters. bfloat16 halves the file and rounds each weight by at
            most 2^-9 of its size: measure the student as saved, not as trained. float32 is exact.

    Raises:
        StorageError: the disk is full, or the directory is not writable.
    """
    plain = merged(model)
    nn.Module.to(plain, device="cpu", dtype=getattr(torch, dtype))
    plain.config.use_cache = True
    # transformers saves a model under the names that it was loaded from, which for the text part of a model
    # that reads images are not those of the text class that config.json names.
    plain._weight_conversions = None  # pyright: ignore[reportArgumentType]
    generation = plain.generation_config
    assert generation is not None
    _end_with_turn(generation, tokenizer, template)
    # transformers refuses to save settings that contradict each other if they were changed since they were
    # read, and published models have some (a temperature without sampling), so their file is written below.
    plain.generation_config = GenerationConfig()
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = template.source
    with atomic_directory(directory) as temporary:
        noise.disable_progress_bar()
        try:
            plain.save_pretrained(temporary)
        except SafetensorError as error:  # safetensors raises this, not OSError, for a full disk
            raise StorageError(f"could not write the weights to {directory}: {error}") from error
        finally:
            noise.enable_progress_bar()
        generation.to_json_file(temporary / GENERATION_CONFIG_NAME)
        tokenizer.save_pretrained(temporary)
        add_version_4_keys(temporary)


def save(
    weights: Weights, directory: str | os.PathLike[str], *, dtype: Literal["bfloat16", "float32"] = "bfloat16"
) -> Path:
    """Writes a model as a transformers directory (safetensors, tokenizer, chat template); returns its path.

    ``weights`` is not changed; LoRA adapters are merged in what is written. `AutoModelForCausalLM`, `load`
    and every verb of `still` read the directory. It is replaced if it exists, and never incomplete.

    Args:
        dtype: type of the saved weights. bfloat16 halves the size and rounds each weight by at most 2^-9 of
            its size; float32 is exact.

    Raises:
        StorageError: the disk is full, or the directory is not writable.
    """
    save_student(weights.model, weights.tokenizer, weights.template, Path(directory), dtype=dtype)
    return Path(directory)


def _end_with_turn(
    generation: GenerationConfig, tokenizer: PreTrainedTokenizerFast, template: ChatTemplate
) -> None:
    """Adds the end marks of the tokenizer and the template to the ids at which generation stops."""
    own = generation.eos_token_id
    ends = [own] if isinstance(own, int) else list(own or [])
    ends += sorted(template.end_token_ids(tokenizer) - {*ends})
    if ends:
        generation.eos_token_id = ends if len(ends) > 1 else ends[0]
