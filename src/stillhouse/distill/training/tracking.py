"""Where a step's numbers go: ``metrics.jsonl`` always, other trackers when asked.

Trackers are for watching; only ``metrics.jsonl`` is read back. It has one line a
step, whatever was killed in between.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from stillhouse.errors import MissingExtraError
from stillhouse.files import atomic_write, storage_errors


class Tracker(Protocol):
    """Somewhere to follow a run."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """``metrics.jsonl`` and the trackers, for the length of a run.

    Args:
        path: of ``metrics.jsonl``.
        steps_done: steps that the checkpoint holds; lines of later ones (a killed run's) are cut off.
        trackers: from :func:`open_tracker`.
    """

    def __init__(self, path: Path, *, steps_done: int, trackers: Sequence[Tracker] = ()) -> None:
        self.path = path
        self.trackers = trackers
        kept = _lines_up_to(path, steps_done)
        self.losses: list[float] = [line["loss"] for line in kept]
        atomic_write(path, "".join(json.dumps(line) + "\n" for line in kept))
        with storage_errors(path):
            self._file = path.open("a", encoding="utf-8", buffering=1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a step's line; it is in the file when this returns."""
        self.losses.append(values["loss"])
        with storage_errors(self.path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
        for tracker in self.trackers:
            tracker.log(step, values)

    def close(self) -> None:
        """Closes the file and the trackers."""
        self._file.close()
        for tracker in self.trackers:
            tracker.close()


def _lines_up_to(path: Path, steps_done: int) -> list[dict[str, Any]]:
    kept = []
    for text in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break  # the torn line of a killed run; nothing follows it
        if line["step"] <= steps_done:
            kept.append(line)
    return kept


def open_tracker(name: str, directory: Path, label: str) -> Tracker:
    """Opens the tracker ``name`` of the recipe's ``train.trackers``; both write on this machine.

    Raises:
        MissingExtraError: its package is not installed.
    """
    return {"tensorboard": TensorBoard, "trackio": Trackio}[name](directory, label)


class TensorBoard:
    """Event files under ``<directory>/tensorboard/<label>``."""

    def __init__(self, directory: Path, label: str) -> None:
        _require("tensorboard")
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(directory / "tensorboard" / label))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Trackio:
    """A trackio project named like the run's directory, in trackio's own local store (``TRACKIO_DIR``)."""

    def __init__(self, directory: Path, label: str) -> None:
        self._trackio = _require("trackio")
        with contextlib.redirect_stdout(sys.stderr):  # it talks, and stdout is for data
            self._trackio.init(
                project=directory.resolve().name,
                name=label,
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._trackio.log(dict(values), step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._trackio.finish()


def _require(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(
            f"train.trackers asks for {package}, which is not installed",
            hint="Install it with: pip install 'stillhouse[track]'",
        ) from error
