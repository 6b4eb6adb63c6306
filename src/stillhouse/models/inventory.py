"""Lists the models on this machine: below a directory, in the cache of the Hub, and embedded.

Reads headers and configuration files only; loads no weights and opens no connection. What a model can do
follows from its files, so a model of an architecture that transformers does not know is listed too.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stillhouse.errors import StillhouseError
from stillhouse.models.metadata import describe
from stillhouse.models.reference import EMBEDDED, parse_reference
from stillhouse.models.types import ModelInfo

DEPTH = 5
"""Folders below the directory that are searched: a study's students are at study/seed-1/arm/student."""
_SKIPPED = ("node_modules", "site-packages", "__pycache__")
_PARTS_OF_A_RUN = ("start", "offline", "control", "checkpoints", "targets", "corpus", "on_policy")
"""Folders of a run whose models are not its result."""
_GENERATIVE = r"CausalLM|ConditionalGeneration|LMHead|^[a-z0-9_]+$"
"""Classes of transformers that generate text; a bare model type, in lower case, may."""
_ENCODERS = r"bert|clip|t5encoder"


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine."""

    reference: str
    """What to write after `still chat`."""
    kind: str
    """`student`, `directory`, `gguf`, `hub` or `embedded`."""
    size_bytes: int | None
    parameters: int | None
    context_length: int | None
    can: tuple[str, ...]
    """`chat`, `serve`, `logits` (so it can teach, be trained and be compared)."""
    problem: str | None = None
    """Why it cannot be used; None if nothing is wrong."""


def list_models(directory: Path) -> list[LocalModel]:
    """Models below ``directory``, then those in the cache of the Hub, then the embedded ones.

    Of a run only its student is listed. Symbolic links and hidden folders are not followed.
    """
    below = [(reference, kind, reference) for reference, kind in _references_below(directory)]
    found = [*below, *_cached_references(), *_embedded_references()]
    return [_local_model(*entry) for entry in found]


def _local_model(reference: str, kind: str, files: str) -> LocalModel:
    """Describes one model.

    Args:
        files: a reference of the files themselves: a name on the Hub could make the client ask the Hub.
    """
    try:
        info = describe(files)
        can, problem = _capabilities(info, parse_reference(files).is_gguf)
    except (StillhouseError, OSError) as error:
        problem = str(error).removeprefix(files).lstrip(": ")
        return LocalModel(reference, kind, None, None, None, (), problem=problem)
    return LocalModel(
        reference, kind, info.size_bytes, info.parameters, info.context_length, can, problem=problem
    )


def _capabilities(info: ModelInfo, is_gguf: bool) -> tuple[tuple[str, ...], str | None]:
    """What a model can do here, or what prevents that."""
    classes = info.config.get("architectures") or [str(info.model_type)]
    if not any(re.search(_GENERATIVE, name) for name in classes) and not is_gguf:
        return (), f"does not generate text ({', '.join(classes)})"
    if is_gguf:
        if re.search(_ENCODERS, str(info.model_type)):
            return (), f"does not generate text ({info.model_type})"
        loads = info.config != {} and info.model_type is not None
        runs = importlib.util.find_spec("xllamacpp") is not None
        if not (loads or runs):
            return (), f"the architecture {info.model_type} needs llama.cpp: pip install 'stillhouse[gguf]'"
        return ("chat", "serve", *(["logits"] if loads else [])), None
    if info.size_bytes is None:
        return (), "has no safetensors weights"
    if info.tokenizer_hash is None:
        return (), "has no tokenizer.json"
    if "quantization_config" in info.config:
        return (), "has quantised weights; use the original ones"
    return ("chat", "serve", "logits"), None


def _references_below(directory: Path) -> Iterator[tuple[str, str]]:
    """References of models below a directory, in the order of their paths, with their kinds."""
    for folder, names, files in os.walk(directory):
        path = Path(folder)
        depth = len(path.relative_to(directory).parts)
        is_run = "manifest.json" in files and "recipe.yaml" in files
        names[:] = sorted(
            name
            for name in names
            if depth < DEPTH
            and not name.startswith(".")
            and name not in _SKIPPED
            and not (is_run and name in _PARTS_OF_A_RUN)
            and not (path / name / "pyvenv.cfg").is_file()
        )
        if "config.json" in files and any(file.endswith((".safetensors", ".bin")) for file in files):
            is_student = path.name == "student" and (path.parent / "recipe.yaml").is_file()
            yield str(path.parent if is_student else path), "student" if is_student else "directory"
        for file in sorted(files):
            if file.endswith(".gguf"):
                yield str(path / file), "gguf"


def _cached_references() -> Iterator[tuple[str, str, str]]:
    """References of models in the Hub's cache that are there with their weights."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except (CacheNotFound, OSError, ValueError):
        return
    for repository in sorted(repositories, key=lambda repository: repository.repo_id):
        if repository.repo_type != "model":
            continue
        newest = max(repository.revisions, key=lambda revision: revision.last_modified, default=None)
        names = {file.file_name: file.file_path for file in newest.files} if newest else {}
        if "config.json" in names and any(name.endswith(".safetensors") for name in names):
            # A revision that no branch names is only found by its hash.
            revision = "" if newest is None or "main" in newest.refs else f"@{newest.commit_hash}"
            yield f"hub:{repository.repo_id}{revision}", "hub", str(names["config.json"].parent)
        for name, file in sorted(names.items()):
            if name.endswith(".gguf"):
                yield str(file), "gguf", str(file)


def _embedded_references() -> Iterator[tuple[str, str, str]]:
    """References of the embedded models that are installed."""
    for name in EMBEDDED:
        try:
            reference = parse_reference(f"embedded:{name}").text
            yield reference, "embedded", reference
        except StillhouseError:
            continue
