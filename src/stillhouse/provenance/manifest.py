"""``manifest.json``: the hash of every input and output of every stage of a run.

It tells which stages need not run again, and lets :mod:`.verify` find what was changed
since. It is not signed: whoever can write the run's directory can write the manifest too.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from annotated_types import Ge

from stillhouse import __version__
from stillhouse.errors import IntegrityError
from stillhouse.files import read_json, write_json
from stillhouse.hashing import sha256_file, sha256_json
from stillhouse.recipe import Recipe
from stillhouse.recipe.retired import RetiredValues, restore_retired

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
STAGE_INPUT = "stage."
"""Before an earlier stage's name, as the key of an input; its value is its :meth:`Manifest.digest`."""
RECIPE_INPUT = "recipe."
"""Before the name of a recipe section: its value is :func:`recipe_section_hash`."""
RESULT_NEUTRAL = frozenset(
    (
        "teacher.api_key_env",
        "teacher.price_in",
        "teacher.price_out",
        "collect.concurrency",
        "collect.timeout_s",
        "collect.retries",
        "collect.tolerated_failures",
        "collect.max_cost",
        "collect.max_total_tokens",
        "train.checkpoint_every",
        "train.trackers",
    )
)
"""Keys of a recipe that say how a stage works, not what comes out: they may change, and nothing is redone."""


@dataclass(frozen=True, kw_only=True)
class OutputFile:
    """A file that a stage wrote."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  pydantic's own name

    path: str
    """Below the run's directory, with `/`."""
    sha256: str
    size: Annotated[int, Ge(0)]

    def difference(self, directory: Path) -> str | None:
        """How the file now differs from this record, or None."""
        path = directory / self.path
        try:
            if not path.is_file():
                return f"{self.path} is missing"
            size = path.stat().st_size
            if size != self.size:
                return f"{self.path} has {size} bytes instead of {self.size}"
            if sha256_file(path) != self.sha256:
                return f"{self.path} has other content than recorded"
        except OSError as error:
            return f"{self.path} cannot be read: {error.strerror}"
        return None


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """What one stage took, made, and found out."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  pydantic's own name

    inputs: dict[str, str]
    outputs: tuple[OutputFile, ...]
    facts: dict[str, Any]
    started: str | None
    """ISO 8601, UTC; None where nobody said."""
    finished: str
    versions: dict[str, str]
    """Of what ran it: stillhouse, python, torch, transformers, platform."""


class Manifest:
    """The manifest of one run.

    Args:
        directory: the run's directory.
        stages: records by name, in the order in which the stages were finished first.
    """

    def __init__(self, directory: str | Path, stages: Mapping[str, StageRecord] | None = None) -> None:
        self.directory = Path(directory)
        self.stages = dict(stages or {})

    @classmethod
    def load(cls, run_dir: str | Path) -> Manifest:
        """Reads ``run_dir/manifest.json``; empty when there is none.

        Raises:
            IntegrityError: the file is not a manifest.
        """
        from pydantic import TypeAdapter, ValidationError

        path = Path(run_dir) / MANIFEST
        if not path.exists():
            return cls(run_dir)
        hint = "Restore the file, or remove it: the run then does all its stages again."
        try:
            data = read_json(path)
        except (ValueError, OSError, RecursionError) as error:
            raise IntegrityError(f"{path} cannot be read: {error}", hint=hint) from error
        if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
            raise IntegrityError(f"{path} is not a manifest of version {SCHEMA_VERSION}", hint=hint)
        try:
            stages = TypeAdapter(dict[str, StageRecord]).validate_python(data.get("stages"))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(["stages", *map(str, first["loc"])])
            raise IntegrityError(f"{path}: {place}: {first['msg'].lower()}", hint=hint) from error
        for name, record in stages.items():
            for output in record.outputs:
                if not _is_below(output.path):
                    raise IntegrityError(
                        f"{path}: stage {name} names {output.path!r}, outside the run", hint=hint
                    )
        return cls(run_dir, stages)

    def finished(self, stage: str, inputs: Mapping[str, str]) -> bool:
        """Whether ``stage`` was done with these inputs, and its files are still the same (hashed anew)."""
        record = self.stages.get(stage)
        if record is None or record.inputs != dict(inputs):
            return False
        return not any(output.difference(self.directory) for output in record.outputs)

    def record(
        self,
        stage: str,
        inputs: Mapping[str, str],
        outputs: Iterable[Path],
        facts: Mapping[str, Any],
        *,
        started: datetime | None = None,
    ) -> None:
        """Writes down a finished stage, in place of an earlier record; the file is replaced atomically.

        Args:
            inputs: hashes by name; those named as by ``STAGE_INPUT`` and ``RECIPE_INPUT`` can be rechecked.
            outputs: files below the run's directory.
            facts: what the stage found out; anything JSON can hold.
            started: when it began, with a time zone.

        Raises:
            StorageError: the disk is full, or the place may not be written.
        """
        self.stages[stage] = StageRecord(
            inputs=dict(inputs),
            outputs=tuple(self._output(path) for path in sorted(set(map(Path, outputs)))),
            facts=dict(facts),
            started=started.astimezone(UTC).isoformat(timespec="seconds") if started else None,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions(),
        )
        stages = {name: dataclasses.asdict(record) for name, record in self.stages.items()}
        write_json(self.directory / MANIFEST, {"schema_version": SCHEMA_VERSION, "stages": stages})

    def facts(self, stage: str) -> dict[str, Any]:
        """What ``stage`` found out; empty when it was not done."""
        record = self.stages.get(stage)
        return dict(record.facts) if record else {}

    def digest(self, stage: str) -> str:
        """One hash over the names and hashes of a stage's outputs; of nothing, when it was not done."""
        record = self.stages.get(stage)
        return sha256_json([[output.path, output.sha256] for output in record.outputs] if record else [])

    def _output(self, path: Path) -> OutputFile:
        below = path.absolute().relative_to(self.directory.absolute()).as_posix()
        assert _is_below(below), f"{path} is not below {self.directory}"
        return OutputFile(path=below, sha256=sha256_file(path), size=path.stat().st_size)


def recipe_section_hash(recipe: Recipe, section: str, retired: RetiredValues | None = None) -> str:
    """The hash of a part of a recipe, named with dots (``train``, ``train.max_length``).

    In the hash of a whole section its :data:`RESULT_NEUTRAL` keys do not count.

    Args:
        retired: what an older run's recipe had in keys that were removed since (default: their old defaults,
            so that the hash of a section is what it was before).
    """
    value: Any = recipe
    for name in section.split("."):
        value = getattr(value, name)
    if not dataclasses.is_dataclass(value):
        return sha256_json(_plain(value))
    fields = restore_retired(section, dataclasses.asdict(value), retired)  # pyright: ignore[reportArgumentType]
    return sha256_json({key: v for key, v in fields.items() if f"{section}.{key}" not in RESULT_NEUTRAL})


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # pyright: ignore[reportArgumentType]


def _is_below(path: str) -> bool:
    parts = PurePosixPath(path)
    return bool(parts.parts) and not parts.is_absolute() and ".." not in parts.parts


def versions() -> dict[str, str]:
    """Of what runs: stillhouse, python, torch, transformers, platform."""
    found = {
        "stillhouse": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for package in ("torch", "transformers"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
