"""What `run`, `collect` and `train` have in common: read the recipe, find the directory, run the stages."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from stillhouse.console import console
from stillhouse.errors import UsageError
from stillhouse.recipe import Recipe

NO_REASON = ("", "null", "none", "~")


def read_recipe(path: Path, overrides: tuple[str, ...], accept_terms: str | None) -> Recipe:
    """The recipe with everything the command line says about it.

    Raises:
        UsageError: ``accept_terms`` is no reason, or the file is a study.
    """
    from stillhouse.recipe.load import load_recipe
    from stillhouse.recipe.study import is_study

    if is_study(path):
        raise UsageError(
            f"{path} is a study, which only `still run` reads",
            hint=f"`still run {path} --dry-run` names its arms.",
        )
    recipe = load_recipe(path, overrides)
    if accept_terms is None:
        return recipe
    if accept_terms.strip().casefold() in NO_REASON:
        raise UsageError(
            f"--accept-terms {accept_terms!r} is no reason",
            hint='It is recorded for good: say why, e.g. --accept-terms "I made this model myself".',
        )
    return dataclasses.replace(recipe, accept_terms=accept_terms)


def run_stages(
    recipe: Recipe, out: Path | None, *, restart: bool, until: str | None
) -> tuple[Path, dict[str, Any]]:
    """Runs the pipeline up to a stage; returns the run's directory and what the pipeline answered."""
    from stillhouse import pipeline
    from stillhouse.cli.run_directory import run_directory

    directory = run_directory(recipe, out, restart=restart)

    def announce(stage: str) -> None:
        console.info(f"{stage} …")

    return directory, pipeline.run(recipe, directory, until=until, on_stage=announce)
