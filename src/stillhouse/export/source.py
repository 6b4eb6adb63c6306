"""The model to be exported: configuration, tokenizer, and weights read one at a time.

Students are saved merged and plain (see `distill.saving`), so most are read straight from their
safetensors files, never all in memory. A bare PEFT adapter is merged into its base first, which
takes the memory of the whole model in float32.
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

STUDENT = "student"  # where a run keeps it
_ADAPTER = "adapter_config.json"
_NOT_WEIGHTS = ("rotary_emb.inv_freq",)


@dataclass(frozen=True)
class Source:
    """A model as transformers names its parts."""

    path: Path
    name: str
    license: str | None
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerFast
    template: ChatTemplate
    ends: tuple[int, ...]
    """Ids that end an answer, the tokenizer's end token first where it has one."""
    weights: Mapping[str, Callable[[], Tensor]]
    """Parameter name -> reads it. Tied output weights are left out."""
    shapes: Mapping[str, tuple[int, ...]]


def open_source(directory: Path) -> Source:
    """The model in ``directory``: a model's directory, a run's (its student is taken), or an adapter's.

    Raises:
        ModelNotFoundError: no model or no weights there.
        ModelError: damaged, pickled, quantised, incomplete, or with a tokenizer that does not fit.
        MissingExtraError: an adapter, and peft is not installed.
    """
    path = directory
    if not (path / "config.json").is_file() and (path / STUDENT).is_dir():
        path = path / STUDENT
    if not path.is_dir():
        raise ModelNotFoundError(
            f"{directory} is no directory", hint="Name a student's directory, or that of a finished run."
        )
    name = (path.parent if path.name == STUDENT else path).resolve().name
    if (path / _ADAPTER).is_file() and not (path / "config.json").is_file():
        return _adapter(path, name)
    require_safetensors(path)
    tokenizer, template = load_tokenizer(str(path))
    config, read = _config(path), _stored(path)
    return _source(path, name, config, tokenizer, template, read, _ends_of(path))


def _source(
    path: Path,
    name: str,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerFast,
    template: ChatTemplate,
    read: dict[str, Callable[[], Tensor]],
    ends: list[int],
) -> Source:
    """Puts the parts together after holding them against each other."""
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"{path} holds quantised weights", hint="Export the unquantised model; --quantize does the rest."
        )
    shapes = _shapes(path, config)
    weights = {key: read[key] for key in shapes if key in read}
    if missing := sorted(shapes.keys() - weights.keys()):
        raise ModelError(
            f"{path} lacks the weights {missing[0]}" + f" and {len(missing) - 1} more" * (len(missing) > 1),
            hint="Copy the model again, or train the student again.",
        )
    left = [key for key in read.keys() - shapes.keys() if not key.endswith((*_NOT_WEIGHTS, "lm_head.weight"))]
    if left:
        raise ModelError(f"{path}: the weights {min(left)} have no place in a {config.model_type} model")
    require_rows(path, tokenizer, config.get_text_config().vocab_size)
    first = tokenizer.eos_token_id
    ordered = dict.fromkeys([first, *sorted(template.end_token_ids(tokenizer)), *ends])
    known = tuple(number for number in ordered if isinstance(number, int))
    return Source(
        path, name, _license(path), config, tokenizer, template, known, weights=weights, shapes=shapes
    )


def _config(path: Path) -> PreTrainedConfig:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as many kinds as there are model classes
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"{path}: config.json cannot be used: {first}", hint="Copy the model again."
        ) from error


def _shapes(path: Path, config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter that a model of this configuration has."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # as above
        raise ModelError(f"{path}: {config.model_type!r} is no language model: {error}") from error
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if config.get_text_config().tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    return shapes


def _stored(path: Path) -> dict[str, Callable[[], Tensor]]:
    """Readers of every tensor in the safetensors files that transformers would load."""
    from safetensors import SafetensorError, safe_open

    index = path / "model.safetensors.index.json"
    files = [path / "model.safetensors"]
    if index.is_file():  # its names were checked by require_safetensors
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


def _adapter(path: Path, name: str) -> Source:
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
            warnings.simplefilter("ignore", FutureWarning)  # of what peft calls in transformers
            joined = peft.PeftModel.from_pretrained(base.model, str(path))
            model: Any = joined.merge_and_unload(safe_merge=True)  # pyright: ignore[reportCallIssue]
    except Exception as error:  # peft raises whatever its parts raise
        raise ModelError(
            f"{path} does not fit its base model: {error}", hint="Is base_model_name_or_path the right model?"
        ) from error
    tokenizer, template = base.tokenizer, base.template
    if (path / "tokenizer.json").is_file():
        tokenizer, template = load_tokenizer(str(path))
    values = model.state_dict()
    read = {key: (lambda value=value: value) for key, value in values.items()}
    return _source(path, name, model.config, tokenizer, template, read, _as_ids(model.generation_config))


def _base(path: Path) -> str:
    """The base model that the adapter names, which must be on this machine."""
    try:
        named = json.loads((path / _ADAPTER).read_text("utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ModelError(f"{path / _ADAPTER} names no base model") from error
    for place in (Path(str(named)), path / str(named)):
        if place.exists():
            return str(place)
    raise ModelNotFoundError(
        f"{path}: the base model {named!r} is not on this machine",
        hint="Download it and write its directory into adapter_config.json as base_model_name_or_path.",
    )


def _ends_of(path: Path) -> list[int]:
    from transformers import GenerationConfig

    if not (path / "generation_config.json").is_file():
        return []
    try:
        return _as_ids(GenerationConfig.from_pretrained(path, local_files_only=True))
    except Exception as error:  # as many kinds as the file has fields
        raise ModelError(f"{path}: generation_config.json cannot be used: {error}") from error


def _as_ids(generation: Any) -> list[int]:
    found = getattr(generation, "eos_token_id", None)
    return [found] if isinstance(found, int) else list(found or [])


def _license(path: Path) -> str | None:
    return describe(str(path)).license if (path / "config.json").is_file() else None
