"""``still train``: a recipe up to the trained student and its control."""

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
  still train recipes/quickstart.yaml
  still train recipes/quickstart.yaml --train.clip 0.5 --out runs/clipped"""


def train(
    recipe: RecipeFile,
    /,
    *,
    overrides: Overrides = (),
    out: RunDirectory = None,
    accept_terms: AcceptTerms = None,
    restart: Restart = False,
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Train the student and its control; measure nothing.

    Collects first what has not been collected. `still run` with the same recipe goes on from there.
    """
    settings = read_recipe(recipe, overrides, accept_terms)
    directory, facts = run_stages(settings, out, restart=restart, until="on_policy")
    console.data({"directory": str(directory), **facts})
    console.info(f"student: {directory / 'student'}")
