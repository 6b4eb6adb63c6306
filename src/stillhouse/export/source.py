"""Opens the model to export: configuration, tokenizer, and weights that are read one at a time.

Students are saved with their adapters merged (see `distill.students.save`), so most are read directly from
their safetensors files, one tensor in memory at a time. A bare PEFT adapter is merged into its base model
first (`adapter.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.errors import ModelError, ModelNotFoundError
from stillhouse.export.adapter import ADAPTER_CONFIG, merged_adapter
from stillhouse.export.header import architecture_of
from stillhouse.export.stored_weights import stored_weights
from stillhouse.models import (
    ChatTemplate,
    describe,
    load_tokenizer,
    require_rows,
    require_safetensors,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

STUDENT = "student"  # the student's folder in a run's directory
OUTPUT, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_NOT_WEIGHTS = r"rotary_emb\.inv_freq$"  # a buffer that old checkpoints contain


@dataclass(frozen=True)
class Source:
    """A model with transformers' names of its weights."""

    path: Path
    name: str
    license: str | None
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerFast
    template: ChatTemplate
    named_templates: Mapping[str, str]
    """Further chat templates by name, such as `tool_use`."""
    ends: tuple[int, ...]
    """Ids that end an answer, the tokenizer's end token first where it has one."""
    weights: Mapping[str, Callable[[], Tensor]]
    """Parameter name -> function that reads it. Output weights that equal the embedding are left out."""
    shapes: Mapping[str, tuple[int, ...]]


def open_source(directory: Path) -> Source:
    """Opens the model in ``directory``, which can be a model's, a run's (its student) or an adapter's.

    Raises:
        ModelNotFoundError: the directory holds no model or no weights.
        ModelError: the model is damaged, pickled, quantised, incomplete, or its tokenizer does not fit.
        MissingExtraError: the model is an adapter, and peft is not installed.
    """
    path = directory
    if not (path / "config.json").is_file() and (path / STUDENT).is_dir():
        path = path / STUDENT
    if not path.is_dir():
        raise ModelNotFoundError(
            f"{directory} is not a directory", hint="Name a student's directory, or that of a finished run."
        )
    name = (path.parent if path.name == STUDENT else path).resolve().name
    if (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file():
        return _adapter(path, name)
    require_safetensors(path)
    tokenizer, template = load_tokenizer(str(path))
    config, readers = _config(path), stored_weights(path)
    return _source(path, name, config, tokenizer, template, readers, _end_ids(path))


def _source(
    path: Path,
    name: str,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerFast,
    template: ChatTemplate,
    readers: dict[str, Callable[[], Tensor]],
    ends: list[int],
) -> Source:
    """Combines configuration, tokenizer and weights after checking that they agree."""
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"{path} holds quantised weights", hint="Export the unquantised model with --quantize."
        )
    architecture_of(config)  # a model that cannot be exported should not be said to lack weights
    shapes, ignored = _shapes(path, config)
    if config.get_text_config().tie_word_embeddings:
        _resolve_tie(readers, shapes)
    weights = {key: readers[key] for key in shapes if key in readers}
    if missing := sorted(shapes.keys() - weights.keys()):
        raise ModelError(
            f"{path} lacks the weights {missing[0]}" + f" and {len(missing) - 1} more" * (len(missing) > 1),
            hint="Copy the model again, or train the student again.",
        )
    unknown = [key for key in readers.keys() - shapes.keys() if not any(re.search(p, key) for p in ignored)]
    if unknown:
        raise ModelError(f"{path}: a {config.model_type} model has no weights {min(unknown)}")
    require_rows(path, tokenizer, config.get_text_config().vocab_size)
    # A dict keeps the order: the tokenizer's end token comes first, since GGUF holds one only.
    candidates = dict.fromkeys([tokenizer.eos_token_id, *sorted(template.end_token_ids(tokenizer)), *ends])
    end_ids = tuple(number for number in candidates if isinstance(number, int))
    return Source(
        path,
        name,
        _license(path),
        config,
        tokenizer,
        template,
        _named_templates(tokenizer),
        end_ids,
        weights=weights,
        shapes=shapes,
    )


def _named_templates(tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    named = tokenizer.chat_template
    return (
        {name: text for name, text in named.items() if name != "default"} if isinstance(named, dict) else {}
    )


def _config(path: Path) -> PreTrainedConfig:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # every model class raises its own types
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"{path}: config.json cannot be used: {first}", hint="Copy the model again."
        ) from error


def _shapes(path: Path, config: PreTrainedConfig) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Name and shape of every parameter of a model with this configuration.

    Also returns regular expressions of the names that transformers ignores in a file.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # as above
        raise ModelError(f"{path}: {config.model_type!r} is not a language model: {error}") from error
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    return shapes, [_NOT_WEIGHTS, *(model._keys_to_ignore_on_load_unexpected or ())]


def _resolve_tie(readers: dict[str, Callable[[], Tensor]], shapes: dict[str, tuple[int, ...]]) -> None:
    """Leaves output weights out where the configuration ties them and the weights agree.

    A file can hold output weights that differ from the embedding, whatever its configuration says; then
    transformers uses them.
    """
    import torch

    if OUTPUT not in readers:
        del shapes[OUTPUT]
    elif EMBEDDING not in readers:  # one stored tensor for both
        readers[EMBEDDING] = readers.pop(OUTPUT)
        del shapes[OUTPUT]
    elif torch.equal(readers[OUTPUT](), readers[EMBEDDING]()):
        del readers[OUTPUT], shapes[OUTPUT]


def _adapter(path: Path, name: str) -> Source:
    merged = merged_adapter(path)
    tokenizer, template = merged.tokenizer, merged.template
    if (path / "tokenizer.json").is_file():
        tokenizer, template = load_tokenizer(str(path))
    readers = {key: (lambda value=value: value) for key, value in merged.model.state_dict().items()}
    ends = _eos_token_ids(merged.model.generation_config)
    return _source(path, name, merged.model.config, tokenizer, template, readers, ends)


def _end_ids(path: Path) -> list[int]:
    from transformers import GenerationConfig

    if not (path / "generation_config.json").is_file():
        return []
    try:
        return _eos_token_ids(GenerationConfig.from_pretrained(path, local_files_only=True))
    except Exception as error:  # every field has its own errors
        raise ModelError(f"{path}: generation_config.json cannot be used: {error}") from error


def _eos_token_ids(generation: Any) -> list[int]:
    ids = getattr(generation, "eos_token_id", None)
    return [ids] if isinstance(ids, int) else list(ids or [])


def _license(path: Path) -> str | None:
    return describe(str(path)).license if (path / "config.json").is_file() else None
