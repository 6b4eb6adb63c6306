"""The radioactivity test as a detector: what it needs, how it is put to a suspect, its placebo keys."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from stillhouse.console import console
from stillhouse.errors import StillhouseError
from stillhouse.trace.access import Access
from stillhouse.trace.detectors.base import Detector, Placebo
from stillhouse.trace.detectors.case import Case
from stillhouse.trace.detectors.radioactivity.judge import NAME, judge, placebo_keys
from stillhouse.trace.detectors.radioactivity.observe import observe_closed, observe_open
from stillhouse.trace.plan import TeacherPlan, TracePlan
from stillhouse.trace.suspects.base import GenerateFn

if TYPE_CHECKING:
    from stillhouse.models import Model, Reply, Request


def _unmet_requirement(plan: TracePlan, access: Access) -> str | None:
    assert plan.tests.radioactivity is not None
    if "watermark key" not in access.teacher:
        return "needs the key of the mark in the teacher's outputs (`watermark_key` in the plan)."
    if "weights" not in access.teacher:
        return "needs the teacher on this machine (--teacher): its tokenizer cuts the words that were marked."
    return access.suspect_lacks("weights" if plan.tests.radioactivity.mode == "open" else "generate")


def _observe(case: Case) -> pa.Table:
    from stillhouse.models import load_tokenizer, load_weights

    section, rows = case.plan.tests.radioactivity, case.log.rows
    assert section is not None and case.teacher.model is not None
    tokenizer, _ = load_tokenizer(case.teacher.model)
    if section.mode == "open":
        with console.progress(NAME, len(rows), "outputs") as progress:
            suspect = load_weights(str(case.plan.suspect))
            return observe_open(suspect, rows, tokenizer, progress=progress.advance)
    with _fastest_generate(case) as generate:
        ask = case.resumable(NAME, case.suspect, generate)
        return observe_closed(ask, rows, tokenizer, seed=case.plan.seed)


@contextmanager
def _fastest_generate(case: Case) -> Iterator[GenerateFn]:
    """The suspect's `generate`; for a GGUF file that of llama.cpp, which is faster than torch."""
    from stillhouse.models import open_model, parse_reference

    reference = str(case.plan.suspect)
    if not parse_reference(reference).is_gguf:
        yield case.suspect.generate
        return
    model = open_model(reference, seed=case.plan.seed)
    try:
        yield lambda requests: asyncio.run(_generate_all(model, requests))
    finally:
        asyncio.run(model.close())


async def _generate_all(model: Model, requests: Sequence[Request]) -> list[Reply | StillhouseError]:
    """An answer to each request, as many at once as the model takes."""
    gate = asyncio.Semaphore(model.concurrency)

    async def generate(batch: Sequence[Request]) -> list[Reply | StillhouseError]:
        async with gate:
            return list(await model.generate(batch))

    size = model.max_batch
    batches = [requests[start : start + size] for start in range(0, len(requests), size)]
    return [reply for replies in await asyncio.gather(*map(generate, batches)) for reply in replies]


def _parameters(plan: TracePlan, teacher: TeacherPlan, secrets: Mapping[str, bytes]) -> dict[str, Any]:
    section = plan.tests.radioactivity
    assert section is not None
    parameters: dict[str, Any] = {
        "key": secrets[f"{teacher.name}.watermark_key"].decode("ascii", "replace").strip(),
        "scheme": section.scheme,
        "window": section.window,
        "level": section.level,
    }
    if section.scheme == "kgw":
        parameters["gamma"] = section.gamma
    if section.scheme == "tournament":
        parameters["depth"] = section.depth
    return parameters


def _placebos(plan: TracePlan, transcript: pa.Table, parameters: Mapping[str, Any]) -> Iterator[Placebo]:
    for number, key in enumerate(placebo_keys(plan.seed, plan.placebos), 1):
        yield Placebo(f"key {number}", transcript, {**parameters, "key": key, "placebo_keys": [key]})


RADIOACTIVITY = Detector(
    name=NAME,
    level="L2",
    title="The watermark in what the suspect says",
    explanation=(
        "The delivered answers carried a faint, secret pattern in the choice of words. A model that "
        "learned from them repeats the pattern; one that did not has no way to know it. The test "
        "looks for it."
    ),
    unmet_requirement=_unmet_requirement,
    observe=_observe,
    judge=judge,
    parameters=_parameters,
    placebos=_placebos,
)
