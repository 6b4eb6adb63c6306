"""Logging of training metrics: to ``metrics.jsonl`` always, to TensorBoard or Trackio on request.

Only ``metrics.jsonl`` is read back. It has one line per step, even if the run was killed and resumed.
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
    """Receives the metrics of each step."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """Writes the metrics of a run to ``metrics.jsonl`` and its trackers.

    Args:
        path: of ``metrics.jsonl``.
        steps_done: steps in the checkpoint; lines of later steps (of a killed process) are removed.
        trackers: from :func:`open_tracker`.
    """

    def __init__(self, path: Path, *, steps_done: int, trackers: Sequence[Tracker] = ()) -> None:
        self.path = path
        self.trackers = trackers
        lines = _lines_up_to(path, steps_done)
        self.losses: list[float] = [line["loss"] for line in lines]
        atomic_write(path, "".join(json.dumps(line) + "\n" for line in lines))
        with storage_errors(path):
            self._file = path.open("a", encoding="utf-8", buffering=1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Appends the line of a step; it is in the file when this returns."""
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
            break  # the incomplete last line of a killed process
        if line["step"] <= steps_done:
            kept.append(line)
    return kept


def open_tracker(name: str, directory: Path, label: str) -> Tracker:
    """Opens a tracker of the recipe's ``train.trackers``; both write to local files.

    Raises:
        MissingExtraError: its package is not installed.
    """
    return {"tensorboard": TensorBoard, "trackio": Trackio}[name](directory, label)


class TensorBoard:
    """Writes event files under ``<directory>/tensorboard/<label>``."""

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
    """Logs to a Trackio project named after the run's directory, in the local store (``TRACKIO_DIR``)."""

    def __init__(self, directory: Path, label: str) -> None:
        self._trackio = _require("trackio")
        with contextlib.redirect_stdout(sys.stderr):  # Trackio prints, and stdout is for data
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
