"""``still collect``: a recipe up to the filtered corpus."""

from __future__ import annotations

from stillhouse.cli.options import (
    AcceptTerms,
    Output,
    OutputFlags,
    Overrides,
    RecipeFile,
    Restart,
    RunDirectory,
)
from stillhouse.cli.stages import read_recipe, run_stages
from stillhouse.console import console

EXAMPLES = """\
Examples:
  still collect recipes/quickstart.yaml
  still collect recipes/quickstart.yaml --collect.samples 4 --out runs/four"""


def collect(
    recipe: RecipeFile,
    /,
    *,
    overrides: Overrides = (),
    out: RunDirectory = None,
    accept_terms: AcceptTerms = None,
    restart: Restart = False,
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Ask the teacher and filter its answers; train nothing.

    `still run` with the same recipe goes on from there. What is finished is not asked again.
    """
    settings = read_recipe(recipe, overrides, accept_terms)
    directory, facts = run_stages(settings, out, restart=restart, until="filter")
    console.data({"directory": str(directory), **facts})
    console.info(f"corpus: {directory / 'corpus'}")
