"""``still train``: runs a recipe up to the trained student and its control."""

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
  still train quickstart
  still train quickstart --train.clip 0.5 --out runs/clipped"""


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
    """Train the student and its control, without evaluating them.

    Collects missing answers first. `still run` with the same recipe continues from there.
    """
    run_part(recipe, overrides, out, accept_terms, restart=restart, until="on_policy", result="student")
