"""``manifest.json``: the hash of every input and output of every stage of a run.

The manifest decides which stages need not run again, and :mod:`.verify` detects later
changes with it. It is not signed: anyone who can write the run's directory can also
write the manifest.
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
from stillhouse.recipe.field_types import hashed_values
from stillhouse.recipe.retired import RetiredValues, restore_retired

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
STAGE_INPUT = "stage."
"""Prefix of an earlier stage's name as the key of an input; the value is its :meth:`Manifest.digest`."""
RECIPE_INPUT = "recipe."
"""Prefix of a recipe section's name as the key of an input; the value is :func:`recipe_section_hash`."""
RESULT_NEUTRAL = frozenset(
    (
        "teacher.api_key_env",
        "teacher.price_in",
        "teacher.price_out",
        "prompts.tolerated_rejects",
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
"""Keys of a recipe that do not affect a stage's results: a stage does not run again when they change."""


@dataclass(frozen=True, kw_only=True)
class OutputFile:
    """A file that a stage wrote."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  pydantic's own name

    path: str
    """Relative to the run's directory, with `/`."""
    sha256: str
    size: Annotated[int, Ge(0)]

    def difference(self, directory: Path) -> str | None:
        """Describes how the file differs from this record, or returns None."""
        path = directory / self.path
        try:
            if not path.is_file():
                return f"{self.path} is missing"
            size = path.stat().st_size
            if size != self.size:
                return f"{self.path} has {size} bytes instead of {self.size}"
            if sha256_file(path) != self.sha256:
                return f"{self.path} differs from the recorded content"
        except OSError as error:
            return f"{self.path} cannot be read: {error.strerror}"
        return None


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """Inputs, outputs and facts of one finished stage."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  pydantic's own name

    inputs: dict[str, str]
    outputs: tuple[OutputFile, ...]
    facts: dict[str, Any]
    started: str | None
    """ISO 8601, UTC; None if unknown."""
    finished: str
    versions: dict[str, str]
    """Versions of stillhouse, python, torch, transformers and the platform that ran the stage."""


class Manifest:
    """The manifest of one run.

    Args:
        directory: the run's directory.
        stages: records by name, in the order in which the stages first finished.
    """

    def __init__(self, directory: str | Path, stages: Mapping[str, StageRecord] | None = None) -> None:
        self.directory = Path(directory)
        self.stages = dict(stages or {})

    @classmethod
    def load(cls, run_dir: str | Path) -> Manifest:
        """Reads ``run_dir/manifest.json``; returns an empty manifest if there is no file.

        Raises:
            IntegrityError: the file is not a valid manifest.
        """
        from pydantic import TypeAdapter, ValidationError

        path = Path(run_dir) / MANIFEST
        if not path.exists():
            return cls(run_dir)
        hint = "Restore the file, or remove it: the run then repeats all its stages."
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
            key = ".".join(["stages", *map(str, first["loc"])])
            raise IntegrityError(f"{path}: {key}: {first['msg'].lower()}", hint=hint) from error
        # a manifest may come from elsewhere and must not make us read files outside the run
        for name, record in stages.items():
            for output in record.outputs:
                if not _is_below(output.path):
                    raise IntegrityError(
                        f"{path}: stage {name} names {output.path!r}, outside the run", hint=hint
                    )
        return cls(run_dir, stages)

    def finished(self, stage: str, inputs: Mapping[str, str]) -> bool:
        """Whether ``stage`` finished with these inputs and its files are unchanged (hashes them again)."""
        record = self.stages.get(stage)
        if record is None or record.inputs != dict(inputs):
            return False
        # hashes, not timestamps: a copied or restored run is still finished
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
        """Records a finished stage, replacing an earlier record; writes the file atomically.

        Args:
            inputs: hashes by name; those with the prefixes ``STAGE_INPUT`` and ``RECIPE_INPUT`` can be
                verified later.
            outputs: files below the run's directory.
            facts: facts about the stage's results; any JSON value.
            started: start of the stage, with a time zone.

        Raises:
            StorageError: the disk is full, or the path is not writable.
        """
        self.stages[stage] = StageRecord(
            inputs=dict(inputs),
            # sorted, because `digest` hashes them in their order
            outputs=tuple(self._output(path) for path in sorted(set(map(Path, outputs)))),
            facts=dict(facts),
            started=started.astimezone(UTC).isoformat(timespec="seconds") if started else None,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions(),
        )
        stages = {name: dataclasses.asdict(record) for name, record in self.stages.items()}
        write_json(self.directory / MANIFEST, {"schema_version": SCHEMA_VERSION, "stages": stages})

    def facts(self, stage: str) -> dict[str, Any]:
        """The facts that ``stage`` recorded; empty if it has not run."""
        record = self.stages.get(stage)
        return dict(record.facts) if record else {}

    def digest(self, stage: str) -> str:
        """One hash over the names and hashes of a stage's outputs; of an empty list if it has not run."""
        record = self.stages.get(stage)
        return sha256_json([[output.path, output.sha256] for output in record.outputs] if record else [])

    def _output(self, path: Path) -> OutputFile:
        relative = path.absolute().relative_to(self.directory.absolute()).as_posix()
        assert _is_below(relative), f"{path} is not below {self.directory}"
        return OutputFile(path=relative, sha256=sha256_file(path), size=path.stat().st_size)


def recipe_section_hash(recipe: Recipe, section: str, retired: RetiredValues | None = None) -> str:
    """The hash of a section or key of a recipe (``train``, ``train.max_length``).

    The hash of a whole section excludes its :data:`RESULT_NEUTRAL` keys.

    Args:
        retired: values that an older run's recipe has in keys that no longer exist (default: their former
            defaults, so that the hash of a section does not change).
    """
    value: Any = recipe
    for name in section.split("."):
        value = getattr(value, name)
    if not dataclasses.is_dataclass(value):
        return sha256_json(hashed_values(value))
    fields = restore_retired(section, hashed_values(value), retired)
    return sha256_json({key: v for key, v in fields.items() if f"{section}.{key}" not in RESULT_NEUTRAL})


def _is_below(path: str) -> bool:
    relative = PurePosixPath(path)
    return bool(relative.parts) and not relative.is_absolute() and ".." not in relative.parts


def versions() -> dict[str, str]:
    """Versions of stillhouse, python, the platform, torch and transformers."""
    result = {
        "stillhouse": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for package in ("torch", "transformers"):
        try:
            result[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return result
