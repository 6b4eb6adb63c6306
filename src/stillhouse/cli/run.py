"""``still run``: runs a recipe from teacher to report, or a study."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from stillhouse.cli.options import (
    AcceptTerms,
    Output,
    OutputFlags,
    Overrides,
    RecipeFile,
    Restart,
    RunDirectory,
)
from stillhouse.cli.run_stages import read_recipe, run_stages
from stillhouse.console import console
from stillhouse.errors import UsageError

EXAMPLES = """\
Examples:
  still run quickstart
  still run mine.yaml --train.epochs 2 --out runs/longer
  still run mine.yaml --dry-run
  still run r1-mini/study --seeds '[1]'"""


def run(
    recipe: RecipeFile,
    /,
    *,
    overrides: Overrides = (),
    out: RunDirectory = None,
    dry_run: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    accept_terms: AcceptTerms = None,
    restart: Restart = False,
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Run a recipe: collect, train, evaluate, and write the report.

    The same command resumes a run that was stopped.
    Keys of the recipe may change if no finished stage depends on them.
    A study (several recipes, seeds and tests; docs/studies.md) runs all its arms.

    Parameters
    ----------
    dry_run
        Load no weights; print stages, tokens, memory, time and cost.
    """
    from stillhouse.recipe.shipped import find_recipe
    from stillhouse.recipe.study import is_study

    recipe = find_recipe(recipe)
    if is_study(recipe):
        from stillhouse.cli.study import show_study

        if restart or accept_terms is not None:
            raise UsageError(
                "a study supports neither --restart nor --accept-terms",
                hint="Remove the directories of the arms to run again; accept_terms belongs in `common`.",
            )
        show_study(recipe, overrides, out, dry_run=dry_run)
        return
    settings = read_recipe(recipe, overrides, accept_terms)
    if dry_run:
        from stillhouse.cli.plan import show_plan

        show_plan(settings)
        return
    directory, report = run_stages(settings, out, restart=restart, until=None)
    from stillhouse.cli.report import show_report

    show_report(report)
    console.info(f"report: {directory / 'report.html'}")
    console.info(f"student: {directory / 'student'}")
