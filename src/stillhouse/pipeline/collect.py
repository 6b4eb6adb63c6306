"""Collects answers from every teacher into one corpus; each prompt goes to the teacher responsible for it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from stillhouse.pipeline.run_context import RunContext
from stillhouse.recipe.teachers import all_teachers, teacher_number, template_variables

if TYPE_CHECKING:
    from stillhouse.corpus import CollectSummary, Prompt

SUMMED = (
    "asked",
    "finished_before",
    "collected",
    "imported",
    "set_aside",
    "prompt_tokens",
    "completion_tokens",
)
"""Fields of a summary that add up over teachers."""


def collect_from_teachers(run: RunContext, prompts: Sequence[tuple[str, Prompt]]) -> CollectSummary:
    """Collects answers to (split, prompt) pairs; returns one summary for all teachers.

    Teachers with weights are loaded one after another. A limit on cost or tokens applies to all together.
    """
    by_teacher: dict[int, list[tuple[str, Prompt]]] = {}
    for split, prompt in prompts:
        by_teacher.setdefault(teacher_number(run.recipe, prompt.tags), []).append((split, prompt))
    by_teacher = by_teacher or {0: []}
    all_ids = {prompt.id for _, prompt in prompts}
    summaries = []
    for number in sorted(by_teacher):
        own_ids = {prompt.id for _, prompt in by_teacher[number]}
        # The corpus is shared: without the others' ids, their answers would count as answers to no prompt.
        summaries.append(asyncio.run(_collect(run, number, by_teacher[number], all_ids - own_ids)))
    return summaries[0] if len(summaries) == 1 else _sum_summaries(summaries)


async def _collect(
    run: RunContext, number: int, prompts: Iterable[tuple[str, Prompt]], other_ids: set[str]
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
        variables=template_variables(teacher),
        extra_body=teacher.extra_body,
    )
    try:
        return await collect_answers(
            model,
            prompts,
            run.corpus("collected"),
            settings,
            teacher=teacher,
            terms=run.teachers_terms[number].key,
            seed=run.recipe.seed,
            other_prompts=other_ids,
        )
    finally:
        await model.close()


def _sum_summaries(summaries: Sequence[CollectSummary]) -> CollectSummary:
    """The sums over teachers; the cost is None if that of any teacher is."""
    costs = [summary.cost_usd for summary in summaries]
    sums: dict[str, Any] = {name: sum(getattr(summary, name) for summary in summaries) for name in SUMMED}
    return dataclasses.replace(
        summaries[0],
        **sums,
        failed=dict(sum((Counter(summary.failed) for summary in summaries), Counter())),
        failure_details={key: text for s in summaries for key, text in s.failure_details.items()},
        not_sent=dict(sum((Counter(summary.not_sent) for summary in summaries), Counter())),
        cost_usd=None if None in costs else sum(cost for cost in costs if cost is not None),
        seconds=round(sum(summary.seconds for summary in summaries), 3),
        lowest_concurrency=min(summary.lowest_concurrency for summary in summaries),
        stopped_by=next((s.stopped_by for s in summaries if s.stopped_by), None),
    )
