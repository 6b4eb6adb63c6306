"""``still collect``: runs a recipe up to the filtered corpus."""

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
from stillhouse.cli.run_stages import run_part

EXAMPLES = """\
Examples:
  still collect quickstart
  still collect quickstart --collect.samples 4 --out runs/four"""


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
    """Collect the teacher's answers and filter them, without training.

    `still run` with the same recipe continues from there. Existing answers are not collected again.
    """
    run_part(recipe, overrides, out, accept_terms, restart=restart, until="filter", result="corpus")
