"""Loads models for training from safetensors directories, hub names and GGUF files.

Pickle weights are refused, and code from a model's directory never runs. GGUF weights are de-quantised to
float32 and carry no quantisation marks, so that they can be trained and saved.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.errors import (
    CapabilityError,
    InvalidReferenceError,
    ModelError,
    ModelNotFoundError,
    OutOfMemoryError,
    StillhouseError,
    is_out_of_memory,
)
from stillhouse.hashing import sha256_file, sha256_json, sha256_text
from stillhouse.models import hub
from stillhouse.models.architecture.embedding_rows import require_rows
from stillhouse.models.architecture.text_model import text_model
from stillhouse.models.chat.template import ChatTemplate
from stillhouse.models.gguf.architectures import from_gguf, tensor_names
from stillhouse.models.gguf.config import architecture_of_file, transformers_config, transformers_name
from stillhouse.models.gguf.file import GgufFile, read_gguf, read_tensor
from stillhouse.models.reference import Reference, parse_reference

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_TO_SAFETENSORS = (
    "Opening a pickle can run any code. Convert it on a machine that you can afford to lose: load the model "
    "there with transformers and save it with save_pretrained(), which writes safetensors."
)


@dataclass
class Weights:
    """A model in memory that can be trained: transformers' model and tokenizer, and the chat template."""

    reference: str
    """What it was loaded from."""
    model: PreTrainedModel
    """float32 unless another type was requested, in eval mode, without quantisation marks."""
    tokenizer: PreTrainedTokenizerFast
    template: ChatTemplate
    fingerprint: str
    """SHA-256 of its files; of a model that was not loaded here, of samples of its weights."""

    @property
    def end_ids(self) -> set[int]:
        """Ids that end an answer: the template's, and those of the model's generation settings."""
        own = getattr(self.model.generation_config, "eos_token_id", None)
        ends = own if isinstance(own, list) else [own]
        return self.template.end_token_ids(self.tokenizer) | {end for end in ends if isinstance(end, int)}


def load_weights(reference: str, *, dtype: str = "float32") -> Weights:
    """Loads the model that ``reference`` names, in eval mode, with its tokenizer and chat template.

    Args:
        dtype: `float32`, `bfloat16` or `float16`.

    Raises:
        ModelNotFoundError: the reference names no model.
        ModelError: the model is damaged, not supported, or stored as pickles.
        TokenizerMismatchError: the tokenizer of a GGUF file cannot be rebuilt exactly.
        CapabilityError: the reference is an API, which has no weights to load.
    """
    parsed = parse_reference(reference)
    path = local_path(parsed)
    if not parsed.is_gguf:
        require_safetensors(path)
    tokenizer, template = _tokenizer(parsed, path)
    with _Loading(path):
        model = _gguf_model(read_gguf(path), dtype) if parsed.is_gguf else _directory_model(path, dtype)
    require_rows(path, tokenizer, model.config.get_text_config().vocab_size)
    return Weights(parsed.text, model.eval(), tokenizer, template, fingerprint(parsed, path))


def load_tokenizer(reference: str) -> tuple[PreTrainedTokenizerFast, ChatTemplate]:
    """Tokenizer and chat template of ``reference``, without the weights; raises as `load_weights` does."""
    parsed = parse_reference(reference)
    path = hub.fetch(parsed, hub.TOKENIZER) if parsed.kind == "hub" else local_path(parsed)
    return _tokenizer(parsed, path)


def fingerprint(reference: Reference, path: Path) -> str:
    """SHA-256 of a model: of the GGUF file, or of the names and hashes of its files."""
    if reference.is_gguf:
        return sha256_file(path)
    files = [p for pattern in ("*.safetensors", "*.json", "*.jinja", "*.model") for p in path.glob(pattern)]
    return sha256_json([[p.name, sha256_file(p)] for p in sorted(files)])


def fingerprint_of(reference: str) -> str:
    """The fingerprint of the model that ``reference`` names, without loading it.

    Raises:
        ModelNotFoundError: the reference names no model.
    """
    parsed = parse_reference(reference)
    if parsed.kind == "api":
        return sha256_text(f"{parsed.url}#{parsed.name}")
    return fingerprint(parsed, local_path(parsed))


def local_path(reference: Reference) -> Path:
    """The path of the files of ``reference``; a hub model is downloaded first.

    Raises:
        CapabilityError: the reference is an API.
        ModelNotFoundError: the hub cannot be reached or has no such model.
    """
    if reference.path is not None:
        return reference.path
    if reference.kind == "api":
        raise CapabilityError(f"{reference.text} is an API: its weights and tokenizer cannot be loaded here")
    return hub.fetch(reference, hub.ALL)


def _tokenizer(reference: Reference, path: Path) -> tuple[PreTrainedTokenizerFast, ChatTemplate]:
    if reference.is_gguf:
        from stillhouse.models.gguf.tokenizer import tokenizer_from_gguf

        file = read_gguf(path)
        tokenizer = tokenizer_from_gguf(file)
        tokenizer.chat_template = _gguf_templates(file)
    else:
        tokenizer = _directory_tokenizer(path)
    return tokenizer, template_of(tokenizer)


def _directory_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise a dozen types, bare Exception among them
        raise ModelError(f"{path}: no usable tokenizer: {_first_line(error)}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(f"{path}: only tokenizers with a tokenizer.json are supported")
    _restore_rules(tokenizer, path / "tokenizer.json")
    return tokenizer


def _restore_rules(tokenizer: PreTrainedTokenizerFast, file: Path) -> None:
    """Gives the tokenizer the rules of its tokenizer.json where transformers replaced them.

    transformers 5 rebuilds some classes from vocabulary and merges alone. A `LlamaTokenizer` then puts no
    space before a text that begins with one, so that "   leading" gets other tokens than the model was
    trained on. llama.cpp, vLLM and transformers 4 follow the file.
    """
    from tokenizers import Tokenizer

    if not file.is_file() or tokenizer.init_kwargs.get("fix_mistral_regex"):
        return
    rules = json.loads(file.read_text("utf-8"))
    # Without vocabulary the rules load at once.
    rules |= {"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": [], "post_processor": None}
    backend, own = tokenizer.backend_tokenizer, Tokenizer.from_str(json.dumps(rules))
    for rule in ("normalizer", "pre_tokenizer", "decoder"):
        if str(getattr(backend, rule)) != str(getattr(own, rule)):
            setattr(backend, rule, getattr(own, rule))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def template_of(tokenizer: PreTrainedTokenizerFast) -> ChatTemplate:
    """The tokenizer's chat template (its default one), or the plain one."""
    specials = {
        name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)
    }
    named = tokenizer.chat_template
    named = named if isinstance(named, dict) else {"default": named}
    tool_source = named.get("tool_use")
    source = named.get("default") or tool_source
    return ChatTemplate(source, specials, tool_source=tool_source) if source else ChatTemplate.plain(specials)


def _gguf_templates(file: GgufFile) -> str | dict[str, str] | None:
    """The chat template of a GGUF file; a mapping where it also has one for tools."""
    key = "tokenizer.chat_template"
    default, tool_use = file.metadata.get(key), file.metadata.get(f"{key}.tool_use")
    return {"default": default or tool_use, "tool_use": tool_use} if isinstance(tool_use, str) else default


class _Loading:
    """Reports running out of memory as an error of ours, and silences transformers while it loads."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        from transformers.utils import logging as transformers_logging

        self.level = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity(logging.ERROR)
        transformers_logging.disable_progress_bar()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity(self.level)
        transformers_logging.enable_progress_bar()
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"{self.path} does not fit in memory", hint="Use a smaller model."
            ) from error


def _directory_model(path: Path, dtype: str) -> PreTrainedModel:
    import torch
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    try:
        _require_plausible_sizes(path)
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        loader = AutoModelForCausalLM
        if config.get_text_config() is not config and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            loader = AutoModelForImageTextToText
        model, info = loader.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
            path,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except StillhouseError:
        raise
    except Exception as error:  # as above
        if is_out_of_memory(error):  # _Loading reports it
            raise
        if "ignore_mismatched_sizes" in str(error):
            raise ModelError(f"{path}: the weights do not have the shapes that config.json says") from error
        raise ModelError(f"{path} cannot be loaded: {_first_line(error)}") from error
    _require_complete(path, info)
    return text_model(_unquantised(model))


def _require_plausible_sizes(path: Path) -> None:
    """Raises ModelError for sizes in config.json that the weights contradict.

    transformers builds the module before it reads the weights, which takes hours for a million layers.
    """
    from safetensors import safe_open
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    config = config.get_text_config()
    tensors = 0
    for file in path.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            tensors += len(weights.keys())
    layers, context = config.num_hidden_layers, getattr(config, "max_position_embeddings", 1)
    if layers > tensors:
        raise ModelError(f"{path}: config.json says {layers:,} layers, but there are {tensors:,} tensors")
    if context < 1:
        raise ModelError(f"{path}: config.json says a context of {context} tokens")


def require_safetensors(path: Path) -> None:
    """Raises where a directory has no configuration, or weights that are not safetensors."""
    if not (path / "config.json").is_file():
        hint = "Name the directory that holds config.json and *.safetensors."
        if ggufs := sorted(path.glob("*.gguf")):
            hint = f"Name the file itself: {ggufs[0]}."
        if (path / "recipe.yaml").is_file():
            recipe = path / "recipe.yaml"
            raise InvalidReferenceError(
                f"{path} is a run that has no student yet", hint=f"`still run {recipe}` goes on with it."
            )
        raise InvalidReferenceError(f"{path} contains no model (no config.json)", hint=hint)
    if any(path.glob("*.safetensors")):
        _require_local_shards(path)
        return
    if pickles := [p.name for pattern in _PICKLES for p in path.glob(pattern)]:
        raise ModelError(
            f"{path} has pickle weights only ({pickles[0]}); they are refused", hint=_TO_SAFETENSORS
        )
    raise ModelNotFoundError(f"{path} has no weights (*.safetensors)")


def _require_local_shards(path: Path) -> None:
    """Raises ModelError where an index names anything but safetensors files of the same directory."""
    for index in path.glob("*.index.json"):
        try:
            shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
            wrong = next((s for s in shards if Path(s).name != s or not s.endswith(".safetensors")), None)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(
                f"{index} is not an index of safetensors files", hint="Download the model again."
            ) from error
        if wrong is not None:
            raise ModelError(
                f"{index} names {wrong!r}: only safetensors files in the same directory are loaded",
                hint="Download the model again.",
            )


def _gguf_model(file: GgufFile, dtype: str) -> PreTrainedModel:
    import torch
    import transformers

    settings = transformers_config(file)
    architecture = architecture_of_file(file)
    assert architecture is not None  # transformers_config has refused others
    config = transformers.AutoConfig.for_model(**settings)
    parameters = dict.fromkeys(transformers_name(architecture, name) for name in file.tensors)
    state: dict[str, torch.Tensor] = {}
    for parameter in filter(None, parameters):
        tensors = {
            name: read_tensor(file, name)
            for name in tensor_names(architecture, parameter)
            if name in file.tensors
        }
        values = from_gguf(architecture, tensors, settings)
        state[parameter] = torch.from_numpy(values).to(getattr(torch, dtype))
    model_class = getattr(transformers, architecture.model_class)
    try:
        model, info = model_class.from_pretrained(
            None, config=config, state_dict=state, dtype=getattr(torch, dtype), output_loading_info=True
        )
    except (RuntimeError, ValueError, TypeError, ArithmeticError) as error:
        raise ModelError(f"{file.path}: {_first_line(error)}", hint="Download the file again.") from error
    _require_complete(file.path, info)
    return _unquantised(model)


def _require_complete(path: Path, info: dict[str, Any]) -> None:
    # transformers initialises missing weights at random and only logs a warning.
    for what, key in (
        ("lacks", "missing_keys"),
        ("has no place for", "unexpected_keys"),
        ("misfits", "mismatched_keys"),
    ):
        if names := sorted(map(str, info[key])):
            raise ModelError(
                f"{path}: the model {what} {names[0]}" + f" and {len(names) - 1} more" * (len(names) > 1)
            )


def _unquantised(model: PreTrainedModel) -> PreTrainedModel:
    """The model, where its weights are plain floating point; raises ModelError where they are quantised."""
    if getattr(model.config, "quantization_config", None) is not None:
        raise ModelError(
            "quantised safetensors cannot be trained", hint="Use the model's unquantised weights."
        )
    return model
