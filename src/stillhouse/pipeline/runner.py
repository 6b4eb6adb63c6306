"""A recipe's stages in order, each skipped when its inputs have not changed.

    terms → collect → filter → select → student → targets → train → control → on_policy → evaluate → card

A stage reads files of earlier stages, writes its own, and is recorded in the
manifest with the hashes of both; what a killed run had finished is not done again,
and what a stage had begun (half a corpus, a checkpoint) it goes on with itself.

This room moves no knowledge and measures nothing: it calls the rooms that do.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stillhouse import __version__
from stillhouse.console import console
from stillhouse.errors import RecipeError
from stillhouse.files import atomic_write, read_json, take_lock
from stillhouse.pipeline.resume import stopped_by
from stillhouse.pipeline.run_context import RunContext
from stillhouse.pipeline.stages import STAGES, Stage
from stillhouse.pipeline.study import run_study
from stillhouse.plan.preflight import CHECKED, preflight
from stillhouse.provenance.manifest import RECIPE_INPUT, STAGE_INPUT, recipe_section_hash
from stillhouse.recipe import Recipe
from stillhouse.recipe.load import dump_recipe

__all__ = ["run", "run_study"]

_WITHOUT_STUDENT = ("terms", "collect", "filter", "select")
"""Runs until one of these stages make no student, so none is measured."""


def run(
    recipe: Recipe,
    directory: Path,
    *,
    until: str | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Runs a recipe's stages in ``directory`` and returns the report.

    Args:
        until: the last stage to run; then the facts of that stage come back instead.
        on_stage: called with a stage's name before it runs (not when it is skipped).
    """
    with _alone_in(directory):
        return _run(recipe, directory, until, on_stage)


@contextlib.contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Refuses a second process in the same run; the system unlocks when this one dies."""
    lock = take_lock(directory)
    try:
        yield
    finally:
        os.close(lock)


def _run(
    recipe: Recipe, directory: Path, until: str | None, on_stage: Callable[[str], None] | None
) -> dict[str, Any]:
    atomic_write(directory / "recipe.yaml", dump_recipe(recipe))
    state = RunContext(recipe, directory)
    state.verdict  # noqa: B018  refuse before anything is loaded or paid for, whatever the manifest says
    if not recipe.prompts.held_out and until not in _WITHOUT_STUDENT:
        raise RecipeError(
            "prompts.held_out is 0: nothing would be left to measure the student on",
            hint="Hold some prompts out; only `still collect` does without.",
        )
    wanted = ("filter",) if until in _WITHOUT_STUDENT else CHECKED
    preflight(recipe, [stage for stage in wanted if stage not in state.manifest.stages])
    for stage in STAGES:
        inputs = _inputs(stage, state, state.manifest.facts(stage.name))
        if state.manifest.finished(stage.name, inputs):
            console.info(f"{stage.name}: done before, unchanged")
        else:
            if on_stage:
                on_stage(stage.name)
            started, before = datetime.now(UTC), _cpu_seconds()
            done = stage.body(state)
            seconds = round((datetime.now(UTC) - started).total_seconds(), 1)
            facts = done.facts | {"seconds": seconds, "cpu_seconds": round(_cpu_seconds() - before, 1)}
            inputs = _inputs(stage, state, facts)
            state.manifest.record(stage.name, inputs, done.outputs, facts, started=started)
        if stage.name == until:
            return state.manifest.facts(stage.name)
    return read_json(directory / "report.json")


def _cpu_seconds() -> float:
    """Of this process, and of its children that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _inputs(stage: Stage, state: RunContext, facts: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of all that a stage depends on: recipe sections, earlier outputs, our own version.

    Collecting that a limit ended goes on when that limit is another: it counts only then.
    """
    inputs = {"stillhouse": __version__}
    limit = stopped_by(facts)
    for section in (*stage.sections, *([limit] if limit else [])):
        inputs[f"{RECIPE_INPUT}{section}"] = recipe_section_hash(state.recipe, section)
    for name in stage.after:
        inputs[f"{STAGE_INPUT}{name}"] = state.manifest.digest(name)
    return inputs
