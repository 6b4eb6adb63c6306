"""Cached targets on disk: an index that is written first, then shards that are each written whole.

A directory holds ``index.json`` (what was cached and where each document stands),
``shard-00000.safetensors`` and so on, and for hidden states ``head.safetensors``. A shard
that is there is complete, so a killed run goes on with the first that is missing. What the
tensors in a shard mean is not known here.
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
"""Fewest tokens of a shard; at most one shard's work is lost when a run is killed."""
MOST_SHARDS = 256
"""A large corpus has larger shards, not more open files."""


@dataclass(frozen=True)
class DocumentLocation:
    """Where a document's rows stand: rows ``start`` to ``start + counted`` of a shard."""

    id: str
    tokens: int
    counted: int
    shard: int
    start: int


class TargetStore:
    """A directory of cached targets.

    Args:
        directory: where the index is, or will be.
        inputs: what the targets were made from; equal inputs give equal targets.
        facts: what a reader needs besides.
        places: one for each document, in the documents' order.
    """

    def __init__(
        self, directory: Path, inputs: dict[str, Any], facts: dict[str, Any], places: list[DocumentLocation]
    ) -> None:
        self.directory = directory
        self.inputs, self.facts, self.places = inputs, facts, places
        self.shards: list[list[int]] = [[] for _ in range(1 + max((p.shard for p in places), default=-1))]
        for document in sorted(range(len(places)), key=lambda i: (places[i].shard, places[i].start)):
            self.shards[places[document].shard].append(document)
        self._open: dict[int, Any] = {}

    @classmethod
    def start(
        cls, directory: Path, inputs: dict[str, Any], facts: dict[str, Any], documents: Sequence[Document]
    ) -> TargetStore:
        """Begins a store, or goes on with the one that is there.

        Raises:
            IntegrityError: one is there that was made from other inputs.
        """
        if (directory / "index.json").exists():
            store = cls.load(directory)
            store.require(inputs)
            for half in directory.glob(".*.tmp"):  # what a killed run was writing
                half.unlink()
            return store
        store = cls(directory, inputs, facts, plan_places(documents))
        index = {
            "format": FORMAT,
            "inputs": inputs,
            "facts": facts,
            "documents": [asdict(p) for p in store.places],
        }
        write_json(directory / "index.json", index)
        return store

    @classmethod
    def load(cls, directory: Path) -> TargetStore:
        """Opens the store in ``directory``, finished or not.

        Raises:
            IntegrityError: there is none, or its index cannot be read.
        """
        path = directory / "index.json"
        try:
            index = read_json(path)
        except FileNotFoundError as error:
            raise IntegrityError(f"no cached targets in {directory}") from error
        except ValueError as error:
            raise IntegrityError(f"{path} is damaged: {error}", hint=_anew(directory)) from error
        if index["format"] != FORMAT:
            raise IntegrityError(f"{path} has format {index['format']}, not {FORMAT}", hint=_anew(directory))
        return cls(
            directory,
            index["inputs"],
            index["facts"],
            [DocumentLocation(**place) for place in index["documents"]],
        )

    def require(self, inputs: Mapping[str, Any]) -> None:
        """Refuses when any of ``inputs`` is not what the store was made from.

        Raises:
            IntegrityError: names what differs.
        """
        for name, value in inputs.items():
            if self.inputs.get(name) != value:
                raise IntegrityError(
                    f"the targets in {self.directory} were cached with another {_WORDS.get(name, name)}: "
                    f"{self.inputs.get(name)}, and now it is {value}",
                    hint=_anew(self.directory),
                )

    def missing(self) -> list[int]:
        """Shards that are not written yet."""
        return [shard for shard in range(len(self.shards)) if not self._path(shard).exists()]

    def write(self, shard: int, tensors: Mapping[str, Tensor]) -> None:
        """Writes a shard, whole or not at all."""
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
                    hint="Run the same command again; caching goes on where it stopped.",
                ) from error
            except SafetensorError as error:
                raise IntegrityError(
                    f"{path} is damaged: {error}", hint="Delete it and run the same command again."
                ) from error
        return self._open[number]

    def _path(self, shard: int) -> Path:
        return self.directory / f"shard-{shard:05d}.safetensors"


_WORDS = {
    "documents": "corpus, tokenizer or loss mask",
    "kind": "objective.targets",
    "top_k": "objective.top_k",
    "temperature": "objective.temperature",
    "dtype": "compute type",
}


def _anew(directory: Path) -> str:
    return f"Delete {directory} to cache them anew, or take another run name to keep them."


def plan_places(documents: Sequence[Document]) -> list[DocumentLocation]:
    """Puts documents of like length into shards of like size, longest first."""
    size = max(SHARD_TOKENS, sum(map(len, documents)) // MOST_SHARDS)
    places: dict[int, DocumentLocation] = {}
    shard = tokens = start = 0
    for index in sorted(range(len(documents)), key=lambda i: (-len(documents[i]), i)):
        document = documents[index]
        if tokens >= size:
            shard, tokens, start = shard + 1, 0, 0
        places[index] = DocumentLocation(document.id, len(document), document.counted, shard, start)
        tokens += len(document)
        start += document.counted
    return [places[index] for index in range(len(documents))]
