"""Chooses the directory of a run: new, or an existing run to resume; never overwrites one.

A run with the same resolved recipe is resumed, and so is one with another recipe if no finished work depends
on the difference; otherwise the command fails and lists the keys that differ. ``--restart`` moves a run aside
and never deletes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse.console import console
from stillhouse.errors import RecipeError, UsageError
from stillhouse.files import LOCK, storage_errors, take_lock
from stillhouse.recipe import Recipe
from stillhouse.recipe.load import parse_recipe, read_text

if TYPE_CHECKING:
    from stillhouse.pipeline.resume import Difference

MOST_DIFFERENCES = 5
"""Differing keys that a message lists."""


def run_directory(recipe: Recipe, out: Path | None, *, restart: bool) -> Path:
    """The directory to run ``recipe`` in: new, empty, or with a run that this recipe can resume.

    Raises:
        UsageError: it holds the run of another recipe or something else, or is the working directory.
        StorageError: another process is running in it, or it cannot be moved aside.
    """
    directory = out or Path("runs") / recipe.name
    with storage_errors(directory):
        exists = directory.exists()
    if exists and not directory.is_dir():
        raise UsageError(
            f"{directory} is a file, not a directory", hint="Choose another directory with --out."
        )
    if not _has_work(directory):
        return directory
    if restart:
        console.info(f"moved the old run to {_move_aside(directory)}")
        return directory
    changed = _require_compatible(recipe, directory)
    console.info(f"resuming {directory}" + (f"; changed: {', '.join(changed)}" if changed else ""))
    return directory


def _has_work(directory: Path) -> bool:
    """Whether a directory holds anything worth keeping.

    A run that failed before its first answer (its terms or prompts were refused, its teacher did not respond)
    does not count.
    """
    from stillhouse.pipeline.resume import has_answers

    if not directory.is_dir():
        return False
    others = {entry.name for entry in directory.iterdir()} - {"recipe.yaml", "manifest.json", LOCK}
    if others == {"corpus"} and (directory / "recipe.yaml").is_file():
        later = {entry.name for entry in (directory / "corpus").iterdir()} - {"collected"}
        return bool(later) or has_answers(directory)
    return bool(others)


def _move_aside(directory: Path) -> Path:
    directory = directory.absolute()
    if Path.cwd().is_relative_to(directory.resolve()):  # "." would still be the old run
        raise UsageError(
            f"--restart cannot move {directory} aside while you are in it",
            hint="Run the command from another directory, or use --out.",
        )
    number = 1
    while (aside := directory.with_name(f"{directory.name}.{number}")).exists():
        number += 1
    lock = take_lock(directory)
    try:
        with storage_errors(aside):
            directory.rename(aside)
    finally:
        os.close(lock)
    return aside


def _require_compatible(recipe: Recipe, directory: Path) -> list[str]:
    """Describes the changes with which the run resumes; raises UsageError if finished work depends on one."""
    from stillhouse.pipeline.resume import compare_recipes, recorded_form

    hint = "Use another directory with --out, or --restart to move this run aside and start over."
    if not (directory / "recipe.yaml").is_file():
        raise UsageError(
            f"{directory} is not empty and is not a run", hint="Choose another directory with --out."
        )
    try:
        file = directory / "recipe.yaml"
        before = parse_recipe(read_text(file), name=str(file))  # paths as written there
    except RecipeError as error:
        raise UsageError(
            f"{directory} holds a run whose recipe cannot be read:\n{error}", hint=hint
        ) from error
    changes = compare_recipes(before, recorded_form(recipe, directory), directory)
    if changes.refused:
        lines = [f"  {line}" for line in _describe(changes.refused, "there", "now")]
        raise UsageError(f"{directory} holds a run of another recipe:\n" + "\n".join(lines), hint=hint)
    return _describe(changes.allowed, "before", "now")


def _describe(differences: Sequence[Difference], then: str, now: str) -> list[str]:
    lines = [f"{key}: {a!r} {then}, {b!r} {now}" for key, a, b in differences[:MOST_DIFFERENCES]]
    if len(differences) > MOST_DIFFERENCES:
        lines.append(f"and {len(differences) - MOST_DIFFERENCES} more")
    return lines
