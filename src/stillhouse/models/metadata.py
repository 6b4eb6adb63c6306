"""Describes a model from its configuration files and headers, without weights and without torch.

Hub models come from the local cache, or are downloaded without their weights. An API has no files.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from stillhouse.errors import ModelError, ModelNotFoundError, StillhouseError
from stillhouse.hashing import sha256_text
from stillhouse.models import hub
from stillhouse.models.gguf.config import ROPE_TENSORS, architecture_of_file, transformers_config
from stillhouse.models.gguf.file import GgufFile, read_gguf
from stillhouse.models.reference import Reference, parse_reference
from stillhouse.models.types import ModelInfo
from stillhouse.provenance import read_card_head

_METADATA_KEYS = (
    "general.license",
    "general.name",
    "general.organization",
    "general.basename",
    "general.architecture",
)
_HEADER_LIMIT = 100_000_000  # bytes; the format's own limit on a safetensors header


def describe(reference: str) -> ModelInfo:
    """The metadata of the model that ``reference`` names.

    Fields that its files do not contain are None. For an API that is everything but the name.

    Raises:
        ModelNotFoundError: the reference names no model.
        ModelError: a header or configuration is damaged.
    """
    parsed = parse_reference(reference)
    if parsed.kind == "api":
        return _api_info(parsed)
    try:
        if parsed.is_gguf:
            assert parsed.path is not None
            return _gguf_info(parsed, read_gguf(parsed.path))
        return _directory_info(parsed, parsed.path or hub.fetch(parsed, hub.SMALL))
    except StillhouseError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ModelError(
            f"{reference}: a file of the model is damaged: {type(error).__name__}: {error}"[:300],
            hint="Download the model again.",
        ) from error


def license_fields(reference: str) -> dict[str, str]:
    """What the model's files say of its licence and origin: head of the card, ``config.json``, GGUF header.

    Needs no weights: of a Hub model, ``README.md`` or ``config.json`` alone is enough. Empty for an API, and
    where no such file is here.

    Raises:
        ModelError: a GGUF header is damaged.
    """
    try:
        parsed = parse_reference(reference)
        if parsed.kind == "api":
            return {}
        if parsed.is_gguf:
            return describe(reference).metadata
        path = parsed.path or hub.fetch(parsed, ["README.md", "config.json"])
    except ModelNotFoundError:
        return {}
    return _license_fields(parsed, path)


def _api_info(reference: Reference) -> ModelInfo:
    empty = dict.fromkeys(
        ("model_type", "parameters", "vocab_size", "layers", "hidden_size", "context_length")
    )
    empty |= dict.fromkeys(("tokenizer_hash", "template_hash", "license", "size_bytes"))
    return ModelInfo(reference=reference.text, kind=reference.kind, name=reference.name, **empty)


def _gguf_info(reference: Reference, file: GgufFile) -> ModelInfo:
    from stillhouse.models.gguf.tokenizer import gguf_tokens, tokenizer_hash

    config: dict[str, Any] = {}
    if architecture_of_file(file) is not None:
        config = transformers_config(file)
    template = file.metadata.get("tokenizer.chat_template")
    embedding = file.tensors.get("token_embd.weight")
    return ModelInfo(
        reference=reference.text,
        kind=reference.kind,
        model_type=config.get("model_type", file.architecture),
        parameters=sum(tensor.size for name, tensor in file.tensors.items() if name not in ROPE_TENSORS),
        vocab_size=embedding.shape[0] if embedding else None,
        layers=file.architecture_field("block_count"),
        hidden_size=file.architecture_field("embedding_length"),
        context_length=file.architecture_field("context_length"),
        tokenizer_hash=tokenizer_hash(gguf_tokens(file), file.metadata.get("tokenizer.ggml.merges", [])),
        template_hash=sha256_text(template) if template else None,
        license=file.metadata.get("general.license"),
        name=file.metadata.get("general.name"),
        size_bytes=file.path.stat().st_size,
        config=config,
        metadata={key: str(file.metadata[key]) for key in _METADATA_KEYS if key in file.metadata},
    )


def _directory_info(reference: Reference, path: Path) -> ModelInfo:
    if not (path / "config.json").is_file():
        from stillhouse.models.weights import require_safetensors

        require_safetensors(path)
    config = _json(path / "config.json")
    text = config.get("text_config", config)
    metadata = _license_fields(reference, path)
    return ModelInfo(
        reference=reference.text,
        kind=reference.kind,
        model_type=config.get("model_type"),
        parameters=_parameters(path),
        vocab_size=text.get("vocab_size"),
        layers=text.get("num_hidden_layers"),
        hidden_size=text.get("hidden_size"),
        context_length=text.get("max_position_embeddings"),
        tokenizer_hash=_tokenizer_hash(path / "tokenizer.json"),
        template_hash=_template_hash(path),
        license=metadata.get("general.license"),
        name=metadata["general.name"],
        size_bytes=sum(file.stat().st_size for file in path.glob("*.safetensors")) or None,
        config=config,
        metadata=metadata,
    )


def _license_fields(reference: Reference, path: Path) -> dict[str, str]:
    """The fields of a directory's card and ``config.json``; either may be absent."""
    card, config_file = path / "README.md", path / "config.json"
    card_head = read_card_head(card.read_text("utf-8", "replace")) if card.is_file() else {}
    config = _json(config_file) if config_file.is_file() else {}
    fields = card_head | {
        "general.license": card_head.get("license") or config.get("license"),
        "model_type": config.get("model_type"),
        "general.name": config.get("_name_or_path") or reference.name or path.name,
    }
    return {key: str(value) for key, value in fields.items() if value}


def _parameters(path: Path) -> int | None:
    """Number of weights in the safetensors files, or in their index where only that was downloaded."""
    files = sorted(path.glob("*.safetensors"))
    if files:
        return sum(_count_weights(file) for file in files)
    if index := next(iter(path.glob("*.safetensors.index.json")), None):
        return _json(index).get("metadata", {}).get("total_parameters")
    return None


def _count_weights(file: Path) -> int:
    """Number of weights by the header of a safetensors file: 8 bytes of length, then JSON."""
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _HEADER_LIMIT
        if length >= _HEADER_LIMIT:
            raise ModelError(f"{file} is not a safetensors file", hint="Download it again.")
        try:
            header = json.loads(stream.read(length))
            return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{file} has a damaged header", hint="Download it again.") from error


def _tokenizer_hash(file: Path) -> str | None:
    """A tokenizer's hash; for byte-level BPE the same that it has in a GGUF file."""
    from stillhouse.models.gguf.tokenizer import bpe_merges, tokenizer_hash

    if not file.is_file():
        return None
    data = _json(file)
    model = data.get("model", {})
    if not isinstance(model.get("vocab"), dict):
        return sha256_text(file.read_text("utf-8"))
    ids = dict(model["vocab"])
    ids |= {token["content"]: token["id"] for token in data.get("added_tokens", [])}
    return tokenizer_hash(sorted(ids, key=ids.__getitem__), bpe_merges(model))


def _template_hash(path: Path) -> str | None:
    if (file := path / "chat_template.jinja").is_file():
        return sha256_text(file.read_text("utf-8"))
    settings = _json(path / "tokenizer_config.json") if (path / "tokenizer_config.json").is_file() else {}
    template = settings.get("chat_template")
    return sha256_text(template) if isinstance(template, str) else None


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file} is not a JSON object")
    return value
