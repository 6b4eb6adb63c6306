"""``still plan``: what a recipe would cost, before it costs anything."""

from __future__ import annotations

import dataclasses

from stillhouse.cli.options import AcceptTerms, Output, OutputFlags, Overrides, RecipeFile
from stillhouse.cli.stages import read_recipe
from stillhouse.console import console, duration, money
from stillhouse.errors import TermsError
from stillhouse.recipe import Recipe
from stillhouse.recipe.teachers import all_teachers

EXAMPLES = """\
Examples:
  still plan recipes/quickstart.yaml
  still plan recipes/quickstart.yaml --train.tokens 1_000_000 --json"""


def plan(
    recipe: RecipeFile,
    /,
    *,
    overrides: Overrides = (),
    accept_terms: AcceptTerms = None,
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Tell what a recipe would take: tokens, memory, time, money, terms.

    Loads no weights and asks no teacher; times this machine for about a second.
    The same as `still run --dry-run`.
    """
    show_plan(read_recipe(recipe, overrides, accept_terms))


def show_plan(recipe: Recipe) -> None:
    """Plans and prints; then refuses, as a run would, a teacher whose terms do not allow the purpose."""
    from stillhouse.models import recipe_terms
    from stillhouse.plan import plan as plan_recipe
    from stillhouse.provenance import require_all_allowed

    planned = plan_recipe(recipe)
    rows = [
        [stage.name, f"{stage.tokens:,}", _gigabytes(stage.memory_bytes), duration(stage.seconds), stage.note]
        for stage in planned.stages
    ]
    in_all = [_gigabytes(planned.peak_memory_bytes), duration(planned.seconds), _money(planned.dollars)]
    console.table(
        f"Plan of {recipe.name}",
        ["stage", "tokens", "memory", "time", "note"],
        [*rows, ["in all", "", *in_all]],
    )
    if not console.json:
        print(f"Terms: {planned.verdict.reason}")
    data = dataclasses.asdict(planned) | {
        "seconds": planned.seconds,
        "peak_memory_bytes": planned.peak_memory_bytes,
    }
    terms, start = recipe_terms(recipe)
    _warn_of_no_key(recipe)
    try:
        verdict = require_all_allowed(terms, recipe.purpose, recipe.accept_terms, student=start)
    except TermsError as error:
        error.report = data
        raise
    console.data(data | {"verdict": dataclasses.asdict(verdict)})
    if verdict.accepted and not console.json:
        print(f"Accepted by the recipe: {verdict.accepted}")


def _warn_of_no_key(recipe: Recipe) -> None:
    from stillhouse.models import api_key_missing, parse_reference

    lacking = [t for t in all_teachers(recipe) if api_key_missing(parse_reference(t.model), t.api_key_env)]
    for variable in dict.fromkeys(teacher.api_key_env for teacher in lacking):
        console.warn(f"{variable} is not set: without a key a run of this recipe is refused")


def _money(dollars: float | None) -> str:
    return "price unknown: set teacher.price_in and price_out" if dollars is None else money(dollars)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
