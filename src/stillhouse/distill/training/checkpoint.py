"""Resume training: save and restore the complete state of a run, atomically.

A checkpoint is a directory ``step-00000050`` with the trained weights, the optimizer's averages (both
safetensors) and ``state.json`` (progress, generators, identity of the run, hash of each file). It is written
to a temporary directory, synced and renamed; the last two are kept. Nothing is pickled.

Weights that are not trained are not saved: they come with the model.
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
"""Checkpoints that stay on disk: if the newest is damaged, training resumes from the one before."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read from disk.

    Args:
        tensors: the groups passed to :meth:`CheckpointManager.save`, on the CPU.
        state: progress and environment of the run (``facts`` in ``state.json``).
        generators: for :func:`restore_generators`.
    """

    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    generators: dict[str, Any]


class CheckpointManager:
    """Saves, prunes and loads the checkpoints of one run.

    Args:
        directory: created by the first :meth:`save`.
        identity: settings, data and initial weights of the run, as JSON values by name. Loading a checkpoint
            with another identity raises an error.
    """

    def __init__(self, directory: Path, identity: Mapping[str, Any]) -> None:
        self.directory = directory
        self.identity = json.loads(canonical_json(identity))  # as it reads back: lists for tuples

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        generators: Mapping[str, Any],
    ) -> None:
        """Saves the state after ``step`` steps and removes all but the last two checkpoints.

        Raises:
            StorageError: the disk is full or not writable; earlier checkpoints are unchanged.
        """
        target = self.directory / f"step-{step:08d}"
        with atomic_directory(target) as temporary:
            for group, values in tensors.items():
                _save_tensors(temporary / f"{group}.safetensors", values)
            content = {
                "identity": self.identity,
                "facts": dict(state),
                "generators": dict(generators),
                "files": {path.name: sha256_file(path) for path in sorted(temporary.iterdir())},
            }
            write_json(temporary / "state.json", content)
        # The new checkpoint must be on disk before an old one goes: a power cut may come between the two.
        _sync_directory(self.directory)
        for old in self._directories()[:-KEPT]:
            shutil.rmtree(old)

    def load(self) -> Checkpoint | None:
        """Returns the newest intact checkpoint, or None if there are no checkpoints.

        Damaged checkpoints are removed, with a warning, if an older one is intact.

        Raises:
            CheckpointError: the newest intact checkpoint belongs to another run, or every one is damaged.
        """
        for leftover in self.directory.glob(".step-*"):  # of a process killed during save()
            shutil.rmtree(leftover)
        damaged: dict[Path, str] = {}
        for path in reversed(self._directories()):
            try:
                checkpoint, identity = _read(path)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                damaged[path] = str(error)
                continue
            self._require_same(path, identity)
            # Removed only now: while none is known to be intact, a damaged one may still be of use.
            for broken, reason in damaged.items():
                console.warn(f"checkpoint {broken} is damaged ({reason}); resuming from {path.name}")
                shutil.rmtree(broken)
            return checkpoint
        if damaged:
            path, reason = next(iter(damaged.items()))
            raise CheckpointError(
                f"no checkpoint in {self.directory} is intact; {path.name}: {reason}",
                hint="Remove that directory to train from the start.",
            )
        return None

    def _directories(self) -> list[Path]:
        """All checkpoints, oldest first."""
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
    """A checkpoint and its identity; raises ValueError if a file's hash differs."""
    content = read_json(path / "state.json")
    tensors = {}
    for name, expected in content["files"].items():
        if sha256_file(path / name) != expected:
            raise ValueError(f"the hash of {name} does not match")
        tensors[name.removesuffix(".safetensors")] = load_file(path / name)
    return Checkpoint(tensors, content["facts"], content["generators"]), content["identity"]


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        # safetensors reports errors of the operating system only in its message
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            code = int(number[1])
            raise OSError(code, os.strerror(code), str(path)) from error
        raise


def _sync_directory(path: Path) -> None:
    """Flushes a rename in a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def generator_states() -> dict[str, Any]:
    """The states of the random generators of Python, NumPy and PyTorch, as JSON values."""
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
    """Restores the states that :func:`generator_states` returned."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_from_text(states["torch"]))
    if states["cuda"]:
        torch.cuda.set_rng_state_all([_from_text(state) for state in states["cuda"]])


def warn_of_environment_changes(saved: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
    """Warns if threads, device or another value of ``environment`` differs from a checkpoint's state."""
    changed = [key for key in environment if saved[key] != environment[key]]
    if changed:
        differences = ", ".join(f"{key} was {saved[key]}, is {environment[key]}" for key in changed)
        console.warn(
            "the student will not be bit-identical to that of an uninterrupted run, "
            f"because the environment changed: {differences}"
        )


def _to_text(state: Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode("ascii")


def _from_text(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
