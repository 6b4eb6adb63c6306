"""Each teacher is asked the prompts that it is responsible for; all answers go into one corpus."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from stillhouse.pipeline.run_context import RunContext
from stillhouse.recipe.teachers import all_teachers, teacher_number

if TYPE_CHECKING:
    from stillhouse.corpus import CollectSummary, Prompt

ADDED = (
    "asked",
    "finished_before",
    "collected",
    "imported",
    "set_aside",
    "prompt_tokens",
    "completion_tokens",
)


def ask_teachers(run: RunContext, asked: Sequence[tuple[str, Prompt]]) -> CollectSummary:
    """Asks (split, prompt) of whom the recipe says; what was collected, of all teachers together.

    Teachers with weights are loaded one after another. A limit on cost or tokens is for all of them.
    """
    by_teacher: dict[int, list[tuple[str, Prompt]]] = {}
    for split, prompt in asked:
        by_teacher.setdefault(teacher_number(run.recipe, prompt.tags), []).append((split, prompt))
    by_teacher = by_teacher or {0: []}
    everybody = {prompt.id for _, prompt in asked}
    found = []
    for number in sorted(by_teacher):
        own = {prompt.id for _, prompt in by_teacher[number]}
        found.append(asyncio.run(_ask(run, number, by_teacher[number], everybody - own)))
    return found[0] if len(found) == 1 else _together(found)


async def _ask(
    run: RunContext, number: int, asked: Iterable[tuple[str, Prompt]], others: set[str]
) -> CollectSummary:
    from stillhouse.corpus import collect_answers
    from stillhouse.models import open_model

    teacher, settings = all_teachers(run.recipe)[number], run.recipe.collect
    model = open_model(
        teacher.model,
        backend=teacher.backend,
        api_key_env=teacher.api_key_env,
        timeout_s=settings.timeout_s,
        retries=settings.retries,
        seed=run.recipe.seed,
    )
    try:
        return await collect_answers(
            model,
            asked,
            run.corpus("collected"),
            settings,
            teacher=teacher,
            terms=run.teachers_terms[number].key,
            seed=run.recipe.seed,
            other_prompts=others,
        )
    finally:
        await model.close()


def _together(found: Sequence[CollectSummary]) -> CollectSummary:
    """Sums; no cost where one of them has none."""
    costs = [summary.cost_usd for summary in found]
    sums: dict[str, Any] = {name: sum(getattr(summary, name) for summary in found) for name in ADDED}
    return dataclasses.replace(
        found[0],
        **sums,
        failed=dict(sum((Counter(summary.failed) for summary in found), Counter())),
        cost_usd=None if None in costs else sum(cost for cost in costs if cost is not None),
        seconds=round(sum(summary.seconds for summary in found), 3),
        lowest_concurrency=min(summary.lowest_concurrency for summary in found),
        stopped_by=next((s.stopped_by for s in found if s.stopped_by), None),
    )
