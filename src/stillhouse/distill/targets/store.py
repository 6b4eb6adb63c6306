"""Cached targets on disk: an index that is written first, then shards that are each written atomically.

A directory holds ``index.json`` (what was cached, and each document's location),
``shard-00000.safetensors`` and so on, and for hidden states ``head.safetensors``. Every shard that exists is
complete, so a killed run resumes with the first missing one. The tensors in a shard are defined in
:mod:`.formats`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stillhouse.distill.data.documents import Document
from stillhouse.errors import IntegrityError
from stillhouse.files import atomic_write, read_json, write_json

FORMAT = 1
SHARD_TOKENS = 16384
"""Smallest shard, in tokens; at most one shard's work is lost when a run is killed."""
MAX_SHARDS = 256
"""A large corpus has larger shards, not more open files."""


@dataclass(frozen=True)
class DocumentLocation:
    """The location of a document's rows: ``start`` to ``start + counted`` of a shard."""

    id: str
    tokens: int
    counted: int
    shard: int
    start: int


class TargetStore:
    """A directory of cached targets.

    Args:
        directory: of the index.
        inputs: what the targets were computed from; equal inputs give equal targets.
        metadata: what else a reader needs.
        locations: one for each document, in the documents' order.
    """

    def __init__(
        self,
        directory: Path,
        inputs: dict[str, Any],
        metadata: dict[str, Any],
        locations: list[DocumentLocation],
    ) -> None:
        self.directory = directory
        self.inputs, self.metadata, self.locations = inputs, metadata, locations
        shard_count = 1 + max((location.shard for location in locations), default=-1)
        self.shards: list[list[int]] = [[] for _ in range(shard_count)]
        for document in sorted(range(len(locations)), key=lambda i: (locations[i].shard, locations[i].start)):
            self.shards[locations[document].shard].append(document)
        self._open: dict[int, Any] = {}

    @classmethod
    def start(
        cls, directory: Path, inputs: dict[str, Any], metadata: dict[str, Any], documents: Sequence[Document]
    ) -> TargetStore:
        """Creates a store, or opens the existing one to resume it.

        Raises:
            IntegrityError: the existing store was made from other inputs.
        """
        if (directory / "index.json").exists():
            store = cls.load(directory)
            store.require(inputs)
            for partial in directory.glob(".*.tmp"):  # left by a killed run
                partial.unlink()
            return store
        store = cls(directory, inputs, metadata, plan_locations(documents))
        index = {
            "format": FORMAT,
            "inputs": inputs,
            "facts": metadata,
            "documents": [asdict(location) for location in store.locations],
        }
        write_json(directory / "index.json", index)
        return store

    @classmethod
    def load(cls, directory: Path) -> TargetStore:
        """Opens the store in ``directory``, finished or not.

        Raises:
            IntegrityError: the directory has no store, or its index cannot be read.
        """
        path = directory / "index.json"
        try:
            index = read_json(path)
        except FileNotFoundError as error:
            raise IntegrityError(f"no cached targets in {directory}") from error
        except ValueError as error:
            raise IntegrityError(f"{path} is damaged: {error}", hint=_recache_hint(directory)) from error
        if index["format"] != FORMAT:
            raise IntegrityError(
                f"{path} has format {index['format']}, not {FORMAT}", hint=_recache_hint(directory)
            )
        return cls(
            directory,
            index["inputs"],
            index["facts"],
            [DocumentLocation(**location) for location in index["documents"]],
        )

    def require(self, inputs: Mapping[str, Any]) -> None:
        """Checks that the store was made from ``inputs``.

        Raises:
            IntegrityError: names the input that differs.
        """
        for name, value in inputs.items():
            if self.inputs.get(name) != value:
                raise IntegrityError(
                    f"the targets in {self.directory} were cached with another {_LABELS.get(name, name)}: "
                    f"{self.inputs.get(name)}, and now it is {value}",
                    hint=_recache_hint(self.directory),
                )

    def missing_shards(self) -> list[int]:
        """Numbers of the shards that are not written yet."""
        return [shard for shard in range(len(self.shards)) if not self._path(shard).exists()]

    def write(self, shard: int, tensors: Mapping[str, Tensor]) -> None:
        """Writes a shard atomically."""
        atomic_write(self._path(shard), save({name: tensor.contiguous() for name, tensor in tensors.items()}))

    def shard(self, number: int) -> Any:
        """The shard's open file (safetensors' ``safe_open``), mapped into memory.

        Raises:
            IntegrityError: it is missing or damaged.
        """
        if number not in self._open:
            path = self._path(number)
            try:
                self._open[number] = safe_open(path, framework="pt")
            except FileNotFoundError as error:
                raise IntegrityError(
                    f"{path} is missing: the targets are not all cached",
                    hint="Run the same command again; caching resumes where it stopped.",
                ) from error
            except SafetensorError as error:
                raise IntegrityError(
                    f"{path} is damaged: {error}", hint="Delete it and run the same command again."
                ) from error
        return self._open[number]

    def _path(self, shard: int) -> Path:
        return self.directory / f"shard-{shard:05d}.safetensors"


_LABELS = {
    "documents": "corpus, tokenizer or loss mask",
    "kind": "objective.targets",
    "top_k": "objective.top_k",
    "temperature": "objective.temperature",
    "dtype": "compute type",
}


def _recache_hint(directory: Path) -> str:
    return f"Delete {directory} to cache them again, or choose another run name to keep them."


def plan_locations(documents: Sequence[Document]) -> list[DocumentLocation]:
    """Assigns documents of similar length to shards of similar size, longest first."""
    size = max(SHARD_TOKENS, sum(map(len, documents)) // MAX_SHARDS)
    locations: dict[int, DocumentLocation] = {}
    shard = tokens = start = 0
    for index in sorted(range(len(documents)), key=lambda i: (-len(documents[i]), i)):
        document = documents[index]
        if tokens >= size:
            shard, tokens, start = shard + 1, 0, 0
        locations[index] = DocumentLocation(document.id, len(document), document.counted, shard, start)
        tokens += len(document)
        start += document.counted
    return [locations[index] for index in range(len(documents))]
