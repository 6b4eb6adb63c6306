"""Shared by `run`, `plan`, `collect` and `train`: loads a recipe, chooses the directory, runs the stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stillhouse.console import console
from stillhouse.errors import UsageError
from stillhouse.pages.numbers import format_dollars
from stillhouse.recipe import Recipe

NO_REASON = ("", "null", "none", "~")
"""Values of --accept-terms that give no reason."""


def read_recipe(path: Path, overrides: tuple[str, ...], accept_terms: str | None) -> Recipe:
    """Loads a recipe with the command line's overrides and accepted terms.

    Raises:
        UsageError: ``accept_terms`` gives no reason, or the file is a study.
    """
    from stillhouse.recipe.load import load_recipe
    from stillhouse.recipe.shipped import find_recipe
    from stillhouse.recipe.study import is_study

    path = find_recipe(path)
    if is_study(path):
        raise UsageError(
            f"{path} is a study, which only `still run` and `still plan` accept",
            hint=f"`still plan {path}` shows its arms and their costs.",
        )
    recipe = load_recipe(path, overrides)
    if accept_terms is None:
        return recipe
    if accept_terms.strip().casefold() in NO_REASON:
        raise UsageError(
            f"--accept-terms {accept_terms!r} gives no reason",
            hint='The reason is recorded permanently, e.g. --accept-terms "I made this model myself".',
        )
    return dataclasses.replace(recipe, accept_terms=accept_terms)


def run_stages(
    recipe: Recipe, out: Path | None, *, restart: bool, until: str | None
) -> tuple[Path, dict[str, Any]]:
    """Runs the pipeline up to a stage; returns the run's directory and the report, or the stage's facts."""
    from stillhouse import pipeline
    from stillhouse.cli.run_directory import run_directory

    directory = run_directory(recipe, out, restart=restart)

    def announce(stage: str) -> None:
        console.info(f"{stage} …")

    return directory, pipeline.run(recipe, directory, until=until, on_stage=announce)


def run_part(
    path: Path,
    overrides: tuple[str, ...],
    out: Path | None,
    accept_terms: str | None,
    *,
    restart: bool,
    until: str,
    result: str,
) -> None:
    """Runs a recipe up to the stage ``until`` and prints where in the run's directory ``result`` is."""
    recipe = read_recipe(path, overrides, accept_terms)
    directory, facts = run_stages(recipe, out, restart=restart, until=until)
    console.data({"directory": str(directory), **facts})
    console.info(f"{result}: {directory / result}")


def warn_of_missing_keys(variables: Iterable[str]) -> None:
    """Warns of API keys that a run needs and the environment lacks."""
    for variable in variables:
        console.warn(f"{variable} is not set: a run of this recipe needs the API key")


def cost(dollars: float | None) -> str:
    """Dollars as text; None is an unknown price."""
    if dollars is None:
        return "price unknown: set teacher.price_in and price_out"
    return format_dollars(dollars)
