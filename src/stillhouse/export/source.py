"""Opens the model to export: configuration, tokenizer, and weights that are read one at a time.

Students are saved with their adapters merged (see `distill.students.save`), so most are read directly from
their safetensors files, one tensor in memory at a time. A bare PEFT adapter is merged into its base model
first, which takes the memory of the whole model in float32.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.errors import MissingExtraError, ModelError, ModelNotFoundError
from stillhouse.models import (
    ChatTemplate,
    describe,
    load_tokenizer,
    load_weights,
    require_rows,
    require_safetensors,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

STUDENT = "student"  # the student's folder in a run's directory
_ADAPTER_CONFIG = "adapter_config.json"
_NOT_WEIGHTS = ("rotary_emb.inv_freq",)  # buffers that old checkpoints contain


@dataclass(frozen=True)
class Source:
    """A model with transformers' names of its weights."""

    path: Path
    name: str
    license: str | None
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerFast
    template: ChatTemplate
    ends: tuple[int, ...]
    """Ids that end an answer, the tokenizer's end token first where it has one."""
    weights: Mapping[str, Callable[[], Tensor]]
    """Parameter name -> function that reads it. Tied output weights are left out."""
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
    if (path / _ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file():
        return _open_adapter(path, name)
    require_safetensors(path)
    tokenizer, template = load_tokenizer(str(path))
    config, readers = _config(path), _readers(path)
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
    shapes = _shapes(path, config)
    weights = {key: readers[key] for key in shapes if key in readers}
    if missing := sorted(shapes.keys() - weights.keys()):
        raise ModelError(
            f"{path} lacks the weights {missing[0]}" + f" and {len(missing) - 1} more" * (len(missing) > 1),
            hint="Copy the model again, or train the student again.",
        )
    ignored = (*_NOT_WEIGHTS, "lm_head.weight")
    unknown = [key for key in readers.keys() - shapes.keys() if not key.endswith(ignored)]
    if unknown:
        raise ModelError(f"{path}: a {config.model_type} model has no weights {min(unknown)}")
    require_rows(path, tokenizer, config.get_text_config().vocab_size)
    # A dict keeps the order: the tokenizer's end token comes first, since GGUF holds one only.
    candidates = dict.fromkeys([tokenizer.eos_token_id, *sorted(template.end_token_ids(tokenizer)), *ends])
    end_ids = tuple(number for number in candidates if isinstance(number, int))
    return Source(
        path, name, _license(path), config, tokenizer, template, end_ids, weights=weights, shapes=shapes
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


def _shapes(path: Path, config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of a model with this configuration."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # as above
        raise ModelError(f"{path}: {config.model_type!r} is not a language model: {error}") from error
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if config.get_text_config().tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    return shapes


def _readers(path: Path) -> dict[str, Callable[[], Tensor]]:
    """A function that reads each tensor of the safetensors files that transformers would load."""
    from safetensors import SafetensorError, safe_open

    index = path / "model.safetensors.index.json"
    files = [path / "model.safetensors"]
    if index.is_file():  # require_safetensors has checked its names
        names = json.loads(index.read_text("utf-8"))["weight_map"].values()
        files = [path / name for name in sorted(set(names))]
    readers: dict[str, Callable[[], Tensor]] = {}
    for file in files:
        if not file.is_file():
            raise ModelNotFoundError(f"{path} lacks its weights {file.name}", hint="Copy the model again.")
        try:
            opened = safe_open(file, "pt")
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} is damaged: {error}", hint="Copy the model again.") from error
        readers |= {key: _reader(opened, key) for key in opened.keys()}  # noqa: SIM118  no iteration
    return readers


def _reader(opened: Any, key: str) -> Callable[[], Tensor]:
    return lambda: opened.get_tensor(key)


def _open_adapter(path: Path, name: str) -> Source:
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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # from peft's use of transformers
            adapted = peft.PeftModel.from_pretrained(base.model, str(path))
            model: Any = adapted.merge_and_unload(safe_merge=True)  # pyright: ignore[reportCallIssue]
    except Exception as error:  # peft raises what torch, safetensors and transformers raise
        raise ModelError(
            f"{path} does not fit its base model: {error}", hint="Is base_model_name_or_path the right model?"
        ) from error
    tokenizer, template = base.tokenizer, base.template
    if (path / "tokenizer.json").is_file():
        tokenizer, template = load_tokenizer(str(path))
    readers = {key: (lambda value=value: value) for key, value in model.state_dict().items()}
    ends = _eos_token_ids(model.generation_config)
    return _source(path, name, model.config, tokenizer, template, readers, ends)


def _base(path: Path) -> str:
    """The base model that the adapter names. It must be on this machine."""
    try:
        named = json.loads((path / _ADAPTER_CONFIG).read_text("utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ModelError(f"{path / _ADAPTER_CONFIG} names no base model") from error
    for candidate in (Path(str(named)), path / str(named)):
        if candidate.exists():
            return str(candidate)
    raise ModelNotFoundError(
        f"{path}: the base model {named!r} is not on this machine",
        hint="Download it and write its directory into adapter_config.json as base_model_name_or_path.",
    )


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
