"""``still plan``: what a recipe would cost, before it costs anything."""

from __future__ import annotations

import dataclasses

from ..console import console, duration
from ..recipe import Recipe
from .options import AcceptTerms, Output, OutputFlags, Overrides, RecipeFile
from .stages import read_recipe

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

    Loads no weights and asks no teacher; times this machine for about a second. The same as
    `still run --dry-run`.
    """
    show_plan(read_recipe(recipe, overrides, accept_terms))


def show_plan(recipe: Recipe) -> None:
    """Plans and prints; a teacher whose terms forbid the purpose is refused here too."""
    from ..plan import plan as plan_recipe

    planned = plan_recipe(recipe)
    rows = [
        [s.name, f"{s.tokens:,}", _gigabytes(s.memory_bytes), duration(s.seconds), s.note]
        for s in planned.stages
    ]
    rows.append(
        [
            "in all",
            "",
            _gigabytes(planned.peak_memory_bytes),
            duration(planned.seconds),
            f"${planned.dollars:.2f}",
        ]
    )
    console.table(f"Plan of {recipe.name}", ["stage", "tokens", "memory", "time", "note"], rows)
    console.data(dataclasses.asdict(planned))
    if not console.json:
        print(f"Terms: {planned.terms}")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
