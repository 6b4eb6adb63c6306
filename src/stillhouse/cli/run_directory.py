"""Where a run lives, and that nothing there is overwritten unasked.

A directory with the same resolved recipe is gone on with; one with another recipe is
refused, with the keys that differ. ``--restart`` moves a run aside and never deletes.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..console import console
from ..errors import RecipeError, UsageError
from ..files import LOCK, storage_errors, take_lock
from ..recipe import Recipe
from ..recipe_file import differing_keys, load_recipe

MOST_DIFFERENCES = 5


def run_directory(recipe: Recipe, out: Path | None, *, restart: bool) -> Path:
    """The directory to run ``recipe`` in: new, empty, or begun with this very recipe.

    Raises:
        UsageError: it holds another run, or something that is no run, or is the working directory.
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
    _require_same(recipe, directory)
    console.info(f"going on with {directory}")
    return directory


def _begun(directory: Path) -> bool:
    """Whether anything was done here; a run that ended before its first answer (its terms or its prompts
    were refused) leaves nothing that is worth keeping."""
    return directory.is_dir() and any(
        entry.name not in ("recipe.yaml", "manifest.json", LOCK) for entry in directory.iterdir()
    )


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


def _require_same(recipe: Recipe, directory: Path) -> None:
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
    differences = differing_keys(before, recipe)
    if not differences:
        return
    lines = [f"  {key}: {old!r} there, {new!r} now" for key, old, new in differences[:MOST_DIFFERENCES]]
    if len(differences) > MOST_DIFFERENCES:
        lines.append(f"  and {len(differences) - MOST_DIFFERENCES} more")
    raise UsageError(f"{directory} holds a run of another recipe:\n" + "\n".join(lines), hint=start_anew)
