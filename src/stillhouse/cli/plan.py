"""``still plan``: estimates the cost of a recipe without running it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from stillhouse.cli.options import AcceptTerms, Output, OutputFlags, Overrides, RecipeFile
from stillhouse.cli.run_stages import cost, read_recipe, warn_of_missing_keys
from stillhouse.console import console
from stillhouse.errors import TermsError, UsageError
from stillhouse.pages.numbers import format_column, format_duration
from stillhouse.recipe import Recipe

if TYPE_CHECKING:
    from stillhouse.plan import RunPlan

EXAMPLES = """\
Examples:
  still plan quickstart
  still plan quickstart --train.tokens 1_000_000 --json
  still plan r1-mini/study"""


def plan(
    recipe: RecipeFile,
    /,
    *,
    overrides: Overrides = (),
    accept_terms: AcceptTerms = None,
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Estimate what a recipe or a study costs: tokens, memory, time, money, terms.

    Loads no weights and sends nothing to a teacher; benchmarks this machine
    for about a second. Same as `still run --dry-run`. For a study, the data of
    its first seed is made if no run has made it: its `make` runs.
    """
    from stillhouse.recipe.shipped import find_recipe
    from stillhouse.recipe.study import is_study

    recipe = find_recipe(recipe)
    if is_study(recipe):
        from stillhouse.cli.study import show_study_plan

        if accept_terms is not None:
            raise UsageError("a study does not support --accept-terms", hint="Set accept_terms in `common`.")
        show_study_plan(recipe, overrides)
        return
    show_plan(read_recipe(recipe, overrides, accept_terms))


def show_plan(recipe: Recipe) -> None:
    """Prints the plan; then raises TermsError, as a run does, if a teacher's terms forbid the purpose."""
    from stillhouse.models import recipe_terms
    from stillhouse.plan import missing_keys, plan as plan_recipe
    from stillhouse.provenance import require_all_allowed

    planned = plan_recipe(recipe)
    _print_stages(recipe.name, planned)
    console.text(f"Terms: {planned.verdict.reason}")
    data = dataclasses.asdict(planned) | {
        "seconds": planned.seconds,
        "peak_memory_bytes": planned.peak_memory_bytes,
    }
    # after printing: a plan that the terms refuse is still shown, and the error's JSON contains it
    terms, start = recipe_terms(recipe)
    warn_of_missing_keys(missing_keys(recipe))
    try:
        verdict = require_all_allowed(terms, recipe.purpose, recipe.accept_terms, student=start)
    except TermsError as error:
        error.report = data
        raise
    console.data(data | {"verdict": dataclasses.asdict(verdict)})
    if verdict.accepted:
        console.text(f"Accepted by the recipe: {verdict.accepted}")


def _print_stages(name: str, planned: RunPlan) -> None:
    sizes = [*(stage.memory_bytes for stage in planned.stages), planned.peak_memory_bytes]
    memory = format_column(sizes, unit="B")
    rows = [
        [s.name, f"{s.tokens:,}", size, format_duration(s.seconds), s.note]
        for s, size in zip(planned.stages, memory, strict=False)
    ]
    rows.append(["total", "", memory[-1], format_duration(planned.seconds), cost(planned.dollars)])
    console.table(f"Plan of {name}", ["stage", "tokens", "memory", "time", "note"], rows)
