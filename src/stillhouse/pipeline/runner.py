"""The pipeline's loop: runs a recipe's stages in order and skips those whose inputs have not changed.

    terms → collect → filter → select → student → targets → train → control → on_policy → evaluate → card

A stage reads files of earlier stages and writes its own. The manifest records it with the hashes of both, so
a killed run repeats no finished stage. An interrupted stage resumes by itself, from half a corpus or a
checkpoint. :mod:`.resume` decides which changes of the recipe an existing run accepts.

The stages themselves are in :mod:`.stages`.
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
from stillhouse.pipeline.resume import recorded_form, stopping_limit
from stillhouse.pipeline.run_context import RunContext
from stillhouse.pipeline.stages import STAGES, Stage
from stillhouse.pipeline.study import run_study
from stillhouse.plan.preflight import CHECKED, preflight
from stillhouse.plan.rendering import check_rendering
from stillhouse.plan.requirements import require_available
from stillhouse.provenance import Manifest
from stillhouse.provenance.manifest import RECIPE_INPUT, STAGE_INPUT, recipe_section_hash
from stillhouse.recipe import Recipe
from stillhouse.recipe.load import dump_recipe

__all__ = ["run", "run_study"]

LAST_STAGE = STAGES[-1].name
_WITHOUT_STUDENT = ("terms", "collect", "filter", "select")
"""Stages before the student: a run that ends with one of them has nothing to evaluate."""


def run(
    recipe: Recipe,
    directory: Path,
    *,
    until: str | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Runs a recipe's stages in ``directory`` and returns the report.

    Args:
        until: the last stage to run; the stage's facts are returned instead of the report.
        on_stage: called with a stage's name before it runs (not if it is skipped or does not apply).
    """
    with _locked(directory):
        return _run(recipe, directory, until, on_stage)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Refuses a second process in the same run; the lock ends with the process."""
    lock = take_lock(directory)
    try:
        yield
    finally:
        os.close(lock)


def _run(
    recipe: Recipe, directory: Path, until: str | None, on_stage: Callable[[str], None] | None
) -> dict[str, Any]:
    if LAST_STAGE not in Manifest.load(directory).stages:  # a finished run needs nothing
        require_available(recipe, student=until not in _WITHOUT_STUDENT)
    recorded = recorded_form(recipe, directory)
    atomic_write(directory / "recipe.yaml", dump_recipe(recorded))
    context = RunContext(recipe, directory)
    # Checks the terms before anything is loaded or paid for, even if the manifest has that stage as done.
    context.verdict  # noqa: B018
    if not recipe.prompts.held_out and until not in _WITHOUT_STUDENT:
        raise RecipeError(
            "prompts.held_out is 0: no prompts are left to evaluate the student on",
            hint="Hold some prompts out; only `still collect` does without.",
        )
    checks = ("filter",) if until in _WITHOUT_STUDENT else CHECKED
    preflight(recipe, [stage for stage in checks if stage not in context.manifest.stages])
    if until not in _WITHOUT_STUDENT and "collect" not in context.manifest.stages:
        check_rendering(recipe, context.prompt_set.prompts)
    for stage in STAGES:
        facts = context.manifest.facts(stage.name)
        if context.manifest.finished(stage.name, _inputs(stage, context, recorded, facts)):
            if stage.applies(context):
                console.info(f"{stage.name}: unchanged, skipped")
        else:
            if on_stage and stage.applies(context):
                on_stage(stage.name)
            _run_stage(stage, context, recorded)
        if stage.name == until:
            return context.manifest.facts(stage.name)
    return read_json(directory / "report.json")


def _run_stage(stage: Stage, context: RunContext, recorded: Recipe) -> None:
    """Runs one stage and records its inputs, outputs, facts and times in the manifest."""
    started, cpu_before = datetime.now(UTC), _cpu_seconds()
    result = stage.function(context)
    seconds = round((datetime.now(UTC) - started).total_seconds(), 1)
    facts = result.facts | {"seconds": seconds, "cpu_seconds": round(_cpu_seconds() - cpu_before, 1)}
    # Hashed after the stage has run: the facts say which limit, if any, has become an input.
    inputs = _inputs(stage, context, recorded, facts)
    context.manifest.record(stage.name, inputs, result.outputs, facts, started=started)


def _cpu_seconds() -> float:
    """CPU time of this process and of its finished children."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _inputs(stage: Stage, context: RunContext, recorded: Recipe, facts: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of everything that a stage depends on: recipe sections, earlier outputs, this version.

    The sections are those of the recorded recipe, whose paths do not depend on the working directory.
    A limit on collecting is an input only if it stopped the stage: a higher one then resumes it.
    """
    inputs = {"stillhouse": __version__}
    limit = stopping_limit(facts)
    for section in (*stage.sections, *([limit] if limit else [])):
        inputs[f"{RECIPE_INPUT}{section}"] = recipe_section_hash(recorded, section)
    for name in stage.depends_on:
        inputs[f"{STAGE_INPUT}{name}"] = context.manifest.digest(name)
    return inputs
