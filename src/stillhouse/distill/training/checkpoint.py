"""The complete state of a training run, on disk, all of it or nothing.

A checkpoint is a directory ``step-00000050`` with the trained weights, the
optimizer's averages (both safetensors) and ``state.json`` (position, generators,
what the run is, and the hash of each file). It is written beside its final place,
brought to the disk, and renamed; the last two are kept. No pickle is written or read.

It does not hold weights that are not trained: those come with the model.
"""

from __future__ import annotations

import base64
import json
import os
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stillhouse.console import console
from stillhouse.errors import CheckpointError
from stillhouse.files import atomic_directory, read_json, write_json
from stillhouse.hashing import canonical_json, sha256_file

KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint gives back.

    Args:
        tensors: the groups given to :meth:`CheckpointManager.save`, on the processor's memory.
        facts: as given.
        generators: for :func:`restore_generators`.
    """

    tensors: dict[str, dict[str, Tensor]]
    facts: dict[str, Any]
    generators: dict[str, Any]


class CheckpointManager:
    """The checkpoints of one run.

    Args:
        directory: made when the first is saved.
        identity: what makes this run what it is (settings, data, start); JSON values by name. A checkpoint of
            another identity is refused.
    """

    def __init__(self, directory: Path, identity: Mapping[str, Any]) -> None:
        self.directory = directory
        self.identity = json.loads(canonical_json(identity))  # as it reads back: lists for tuples

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        facts: Mapping[str, Any],
        generators: Mapping[str, Any],
    ) -> None:
        """Writes the state after ``step`` steps and removes all but the last two checkpoints.

        Raises:
            StorageError: the disk is full or may not be written; earlier checkpoints are untouched.
        """
        target = self.directory / f"step-{step:08d}"
        with atomic_directory(target) as temporary:
            for group, values in tensors.items():
                _save_tensors(temporary / f"{group}.safetensors", values)
            state = {
                "identity": self.identity,
                "facts": dict(facts),
                "generators": dict(generators),
                "files": {path.name: sha256_file(path) for path in sorted(temporary.iterdir())},
            }
            write_json(temporary / "state.json", state)
        _sync_directory(self.directory)
        for old in self._found()[:-KEPT]:
            shutil.rmtree(old)

    def load(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None when there is none at all.

        Damaged ones are removed, with a warning, when an older one is whole.

        Raises:
            CheckpointError: the newest whole checkpoint belongs to another run, or none is whole.
        """
        for leftover in self.directory.glob(".step-*"):  # of a run killed while it wrote
            shutil.rmtree(leftover)
        damaged: dict[Path, str] = {}
        for path in reversed(self._found()):
            try:
                saved, identity = _read(path)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                damaged[path] = str(error)
                continue
            self._require_same(path, identity)
            for broken, reason in damaged.items():
                console.warn(f"checkpoint {broken} is damaged ({reason}); going on from {path.name}")
                shutil.rmtree(broken)
            return saved
        if damaged:
            path, reason = next(iter(damaged.items()))
            raise CheckpointError(
                f"no checkpoint in {self.directory} is whole; {path.name}: {reason}",
                hint="Remove that directory to train from the start.",
            )
        return None

    def _found(self) -> list[Path]:
        return sorted(self.directory.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))

    def _require_same(self, path: Path, identity: Mapping[str, Any]) -> None:
        differing = [
            key for key in {**self.identity, **identity} if self.identity.get(key) != identity.get(key)
        ]
        if differing:
            changes = ", ".join(
                f"{k} was {identity.get(k)!r}, is {self.identity.get(k)!r}" for k in differing
            )
            raise CheckpointError(
                f"checkpoint {path} belongs to another run: {changes}",
                hint=f"Undo the change, or remove {path.parent} to train from the start.",
            )


def _read(path: Path) -> tuple[Checkpoint, dict[str, Any]]:
    state = read_json(path / "state.json")
    tensors = {}
    for name, expected in state["files"].items():
        if sha256_file(path / name) != expected:
            raise ValueError(f"{name} is not what was written")
        tensors[name.removesuffix(".safetensors")] = load_file(path / name)
    return Checkpoint(tensors, state["facts"], state["generators"]), state["identity"]


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        # safetensors tells the operating system's refusal only in words
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            code = int(number[1])
            raise OSError(code, os.strerror(code), str(path)) from error
        raise


def _sync_directory(path: Path) -> None:
    """Brings a rename in a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def generator_states() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's generators, as JSON values."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": _to_text(torch.get_rng_state()),
        "cuda": [_to_text(state) for state in cuda],
    }


def restore_generators(states: Mapping[str, Any]) -> None:
    """Puts back what :func:`generator_states` returned."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_from_text(states["torch"]))
    if states["cuda"]:
        torch.cuda.set_rng_state_all([_from_text(state) for state in states["cuda"]])


def warn_of_environment_changes(saved: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Says which of ``facts`` (threads, device, …) are not those under which a checkpoint was written."""
    changed = [key for key in facts if saved[key] != facts[key]]
    if changed:
        differences = ", ".join(f"{key} was {saved[key]}, is {facts[key]}" for key in changed)
        console.warn(
            f"the student will not be the same bit for bit as without the interruption: {differences}"
        )


def _to_text(state: Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode("ascii")


def _from_text(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
