"""What a run that is there may still change in its recipe: all that leaves finished work standing.

A change is refused when a stage that is finished, or one that has begun (answers in the
corpus, cached targets, checkpoints), would have to be done again or be mixed of two recipes.
Terms, measuring and the card are done again at no harm. Nothing here is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.pipeline.stages import STAGES
from stillhouse.provenance.manifest import RESULT_NEUTRAL, Manifest
from stillhouse.recipe import Recipe
from stillhouse.recipe.load import differing_keys

Difference = tuple[str, Any, Any]
"""A dotted key, its value in the run's recipe, and the new one."""

_FREE = ("terms", "evaluate", "card")
"""Stages that may be done again at any time."""
_REPEATABLE = ("collect", "filter", "select", "student", "targets")
"""Stages that a changed filter, or more answers, may repeat as long as nothing was trained."""


@dataclass(frozen=True)
class RecipeChanges:
    """How a recipe differs from that of the run."""

    allowed: list[Difference]
    refused: list[Difference]


def compare_recipes(before: Recipe, now: Recipe, directory: Path) -> RecipeChanges:
    """Which of the differences between two recipes the run in ``directory`` can go on with.

    Raises:
        IntegrityError: its manifest cannot be read.
    """
    manifest = Manifest.load(directory)
    limit = stopped_by(manifest.facts("collect"))
    worked = {stage.name for stage in STAGES if _has_work(stage.name, manifest, directory)}
    allowed: list[Difference] = []
    refused: list[Difference] = []
    for difference in differing_keys(before, now):
        key = difference[0]
        if (key in RESULT_NEUTRAL and key != limit) or key.startswith("evaluate."):
            allowed.append(difference)
            continue
        done_again = _affected(key, limit) & worked
        if key == limit or (key.startswith("filter.") and "collect" not in done_again):
            done_again -= set(_REPEATABLE)
        (refused if done_again else allowed).append(difference)
    return RecipeChanges(allowed, refused)


def stopped_by(facts: Mapping[str, Any]) -> str | None:
    """The recipe's key of the limit that ended collecting, by the facts of that stage."""
    limit = facts.get("stopped_by")
    return f"collect.{limit}" if limit else None


def has_answers(directory: Path) -> bool:
    """Whether a teacher has said anything that is kept in the run in ``directory``."""
    collected = directory / "corpus" / "collected"
    journals = (path for path in collected.glob("journal-*.jsonl") if path.stat().st_size)
    return any(collected.glob("shard-*.parquet")) or any(journals)


def _affected(key: str, limit: str | None) -> set[str]:
    """The stages that depend on ``key``, those after them included."""
    found: set[str] = set()
    for stage in STAGES:
        sections = (*stage.sections, *([limit] if limit and stage.name == "collect" else []))
        follows = (found - {"terms"}) & set(stage.after)  # whose record has no file that others read
        if follows or any(_overlap(key, section) for section in sections):
            found.add(stage.name)
    return found


def _overlap(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.") or section.startswith(f"{key}.")


def _has_work(stage: str, manifest: Manifest, directory: Path) -> bool:
    if stage in _FREE:
        return False
    return stage in manifest.stages or any(_begun(stage, directory))


def _begun(stage: str, directory: Path) -> Iterator[Path]:
    """What a stage that was stopped half-way has left and would go on with."""
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
