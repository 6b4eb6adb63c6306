"""Resuming a run with a changed recipe: which changes leave its finished work valid.

A change is refused if a stage that has finished, or one that has begun (answers in the corpus, cached
targets, checkpoints), would have to be repeated or would mix two recipes. Terms, evaluation and model card
may be repeated at any time. Nothing is written here:
:mod:`stillhouse.cli.run_directory` decides between a new run and a resumed one, :mod:`.runner` skips finished
stages, and :mod:`stillhouse.distill.training.checkpoint` resumes training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.errors import RecipeError
from stillhouse.pipeline.stages import STAGES
from stillhouse.provenance.manifest import RESULT_NEUTRAL, Manifest
from stillhouse.recipe import Recipe
from stillhouse.recipe.load import differing_keys, load_recorded_recipe
from stillhouse.recipe.paths import record_paths

Difference = tuple[str, Any, Any]
"""A dotted key, its value in the run's recipe, and the new one."""

_FREE = ("terms", "evaluate", "card")
"""Stages that may be repeated at any time."""
_REPEATABLE = ("collect", "filter", "select", "student", "targets")
"""Stages that a changed filter, or more answers, may repeat as long as nothing was trained."""


@dataclass(frozen=True)
class RecipeChanges:
    """The differences between a run's recipe and another."""

    allowed: list[Difference]
    refused: list[Difference]


def recorded_form(recipe: Recipe, directory: Path) -> Recipe:
    """The recipe as it is recorded in ``directory``: its paths are relative to the directory.

    A path that the run's recipe has already is written as it is there.
    """
    try:
        before, _ = load_recorded_recipe(directory / "recipe.yaml")
    except RecipeError:  # a new run, or one that has nothing to resume
        before = None
    return record_paths(recipe, directory, before)


def compare_recipes(before: Recipe, now: Recipe, directory: Path) -> RecipeChanges:
    """Which differences between two recorded recipes the run in ``directory`` can resume with.

    Raises:
        IntegrityError: its manifest cannot be read.
    """
    manifest = Manifest.load(directory)
    limit = stopping_limit(manifest.facts("collect"))
    begun = {stage.name for stage in STAGES if _has_work(stage.name, manifest, directory)}
    allowed: list[Difference] = []
    refused: list[Difference] = []
    for difference in differing_keys(before, now):
        key = difference[0]
        if (
            (key in RESULT_NEUTRAL and key != limit)
            or key.startswith("evaluate.")
            or _was_default(difference)
        ):
            allowed.append(difference)
            continue
        repeated = _affected(key, limit) & begun
        # A higher limit adds answers, and another filter chooses among the same ones: neither mixes answers
        # of two recipes, and everything up to the targets is rewritten from them.
        if key == limit or (key.startswith("filter.") and "collect" not in repeated):
            repeated -= set(_REPEATABLE)
        (refused if repeated else allowed).append(difference)
    return RecipeChanges(allowed, refused)


def _was_default(difference: Difference) -> bool:
    """Whether an older version wrote its default for a setting that is now left to an API."""
    key, before, now = difference
    return key in ("collect.temperature", "collect.top_p") and before == 1.0 and now is None


def stopping_limit(facts: Mapping[str, Any]) -> str | None:
    """The recipe key of the limit that stopped collecting, by the facts of that stage."""
    limit = facts.get("stopped_by")
    return f"collect.{limit}" if limit else None


def has_answers(directory: Path) -> bool:
    """Whether the run in ``directory`` holds any answer of a teacher."""
    collected = directory / "corpus" / "collected"
    journals = (path for path in collected.glob("journal-*.jsonl") if path.stat().st_size)
    return any(collected.glob("shard-*.parquet")) or any(journals)


def _affected(key: str, limit: str | None) -> set[str]:
    """The stages that depend on ``key``, directly or through an earlier stage."""
    affected: set[str] = set()
    for stage in STAGES:
        sections = (*stage.sections, *([limit] if limit and stage.name == "collect" else []))
        # `terms` writes no file that a later stage reads.
        follows = (affected - {"terms"}) & set(stage.depends_on)
        if follows or any(_overlap(key, section) for section in sections):
            affected.add(stage.name)
    return affected


def _overlap(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.") or section.startswith(f"{key}.")


def _has_work(stage: str, manifest: Manifest, directory: Path) -> bool:
    if stage in _FREE:
        return False
    return stage in manifest.stages or any(_partial_outputs(stage, directory))


def _partial_outputs(stage: str, directory: Path) -> Iterator[Path]:
    """What an interrupted stage has left and would resume from."""
    match stage:
        case "collect" if has_answers(directory):
            yield directory / "corpus" / "collected"
        case "targets":
            yield from directory.glob("targets/**/index.json")
        case "train":
            yield from directory.glob("checkpoints/step-*")
        case "control":
            yield from directory.glob("control/checkpoints/step-*")
        case "on_policy":
            yield from directory.glob("on_policy/checkpoints/step-*")
