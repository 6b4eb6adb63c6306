"""Where a run lives, and that nothing there is overwritten unasked.

A directory with the same resolved recipe is gone on with, and so is one with another
recipe when no finished work depends on what was changed; else it is refused, with the
keys that differ. ``--restart`` moves a run aside and never deletes.
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
from stillhouse.recipe.load import load_recipe

if TYPE_CHECKING:
    from stillhouse.pipeline.resume import Difference

MOST_DIFFERENCES = 5


def run_directory(recipe: Recipe, out: Path | None, *, restart: bool) -> Path:
    """The directory to run ``recipe`` in: new, empty, or with a run that this recipe can go on with.

    Raises:
        UsageError: it holds a run that does not fit or something that is no run, or is the working directory.
        StorageError: an old run is still going on, or could not be moved aside.
    """
    directory = out or Path("runs") / recipe.name
    with storage_errors(directory):
        exists = directory.exists()
    if exists and not directory.is_dir():
        raise UsageError(f"{directory} is a file, not a directory", hint="Choose another place with --out.")
    if not _begun(directory):
        return directory
    if restart:
        console.info(f"the old run is now {_move_aside(directory)}")
        return directory
    changed = _require_compatible(recipe, directory)
    console.info(f"going on with {directory}" + (f"; changed: {', '.join(changed)}" if changed else ""))
    return directory


def _begun(directory: Path) -> bool:
    """Whether anything was done here; a run that ended before its first answer (its terms or its prompts
    were refused, its teacher did not speak) leaves nothing that is worth keeping."""
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
    if Path.cwd().is_relative_to(directory.resolve()):  # "." would go on meaning the old run
        raise UsageError(
            f"--restart cannot move {directory} aside while you are in it",
            hint="Run the command in another directory, or give --out.",
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
    """What the run will go on with changed, in words; refuses what would touch its finished work."""
    from stillhouse.pipeline.resume import compare_recipes

    start_anew = "Give --out another directory, or --restart to move this run aside and start anew."
    if not (directory / "recipe.yaml").is_file():
        raise UsageError(
            f"{directory} is not empty and holds no run", hint="Choose another place with --out."
        )
    try:
        before = load_recipe(directory / "recipe.yaml")
    except RecipeError as error:
        raise UsageError(
            f"{directory} holds a run whose recipe cannot be read:\n{error}", hint=start_anew
        ) from error
    found = compare_recipes(before, recipe, directory)
    if found.refused:
        lines = [f"  {line}" for line in _in_words(found.refused, "there", "now")]
        raise UsageError(f"{directory} holds a run of another recipe:\n" + "\n".join(lines), hint=start_anew)
    return _in_words(found.allowed, "before", "now")


def _in_words(differences: Sequence[Difference], then: str, now: str) -> list[str]:
    words = [f"{key}: {a!r} {then}, {b!r} {now}" for key, a, b in differences[:MOST_DIFFERENCES]]
    if len(differences) > MOST_DIFFERENCES:
        words.append(f"and {len(differences) - MOST_DIFFERENCES} more")
    return words
