"""Downloads the files of hub models. Besides `still fetch-embedded`, nothing else fetches model files."""

from __future__ import annotations

from pathlib import Path

from stillhouse.errors import ModelNotFoundError
from stillhouse.models.reference import Reference

ALL = ["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt", "README.md", "LICENSE*"]
TOKENIZER = ["config.json", "*token*.json", "*.jinja", "*.model", "vocab*", "merges.txt"]
SMALL = ["config.json", "*.safetensors.index.json", "tokenizer*.json", "*.jinja", "README.md"]


def fetch(reference: Reference, patterns: list[str]) -> Path:
    """The local directory with the files of ``reference`` that match ``patterns``. Uses the cache first.

    Raises:
        ModelNotFoundError: offline and not in the cache, no such model, or no access.
    """
    from huggingface_hub import snapshot_download

    name, _, revision = str(reference.name).partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except Exception as error:  # offline, unknown name, no access: the client raises a dozen types
        raise ModelNotFoundError(
            f"{reference.text} could not be fetched: {str(error).splitlines()[0]}",
            hint="Check name and network; gated models need HF_TOKEN. A local directory works offline.",
        ) from error
