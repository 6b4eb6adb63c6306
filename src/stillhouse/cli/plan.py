"""``still plan``: estimates the cost of a recipe without running it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from stillhouse.cli.options import AcceptTerms, Output, OutputFlags, Overrides, RecipeFile
from stillhouse.cli.run_stages import read_recipe
from stillhouse.console import console
from stillhouse.errors import TermsError
from stillhouse.pages.numbers import format_bytes, format_dollars, format_duration
from stillhouse.recipe import Recipe
from stillhouse.recipe.teachers import all_teachers

if TYPE_CHECKING:
    from stillhouse.plan import RunPlan

EXAMPLES = """\
Examples:
  still plan quickstart
  still plan quickstart --train.tokens 1_000_000 --json"""


def plan(
    recipe: RecipeFile,
    /,
    *,
    overrides: Overrides = (),
    accept_terms: AcceptTerms = None,
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Estimate what a recipe costs: tokens, memory, time, money, terms.

    Loads no weights and sends nothing to a teacher; benchmarks this machine
    for about a second. Same as `still run --dry-run`.
    """
    show_plan(read_recipe(recipe, overrides, accept_terms))


def show_plan(recipe: Recipe) -> None:
    """Prints the plan; then raises TermsError, as a run does, if a teacher's terms forbid the purpose."""
    from stillhouse.models import recipe_terms
    from stillhouse.plan import plan as plan_recipe
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
    _warn_of_missing_keys(recipe)
    try:
        verdict = require_all_allowed(terms, recipe.purpose, recipe.accept_terms, student=start)
    except TermsError as error:
        error.report = data
        raise
    console.data(data | {"verdict": dataclasses.asdict(verdict)})
    if verdict.accepted:
        console.text(f"Accepted by the recipe: {verdict.accepted}")


def _print_stages(name: str, planned: RunPlan) -> None:
    rows = [
        [s.name, f"{s.tokens:,}", format_bytes(s.memory_bytes), format_duration(s.seconds), s.note]
        for s in planned.stages
    ]
    memory, time = format_bytes(planned.peak_memory_bytes), format_duration(planned.seconds)
    rows.append(["total", "", memory, time, _cost(planned.dollars)])
    console.table(f"Plan of {name}", ["stage", "tokens", "memory", "time", "note"], rows)


def _warn_of_missing_keys(recipe: Recipe) -> None:
    from stillhouse.models import api_key_missing, parse_reference

    lacking = [t for t in all_teachers(recipe) if api_key_missing(parse_reference(t.model), t.api_key_env)]
    for variable in dict.fromkeys(teacher.api_key_env for teacher in lacking):
        console.warn(f"{variable} is not set: a run of this recipe needs the API key")


def _cost(dollars: float | None) -> str:
    if dollars is None:
        return "price unknown: set teacher.price_in and price_out"
    return format_dollars(dollars)
