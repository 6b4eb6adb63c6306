"""The generations of one request, one for each choice of its answer."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from stillhouse.models import Sampling
from stillhouse.serve.context import ServerContext
from stillhouse.serve.engines.base import Engine, GenerationRequest, TextDelta, check_request
from stillhouse.serve.generation.answers import GeneratedAnswer
from stillhouse.serve.generation.chat_prompt import ChatPrompt, build_chat_prompt
from stillhouse.serve.generation.chat_task import ChatTask
from stillhouse.serve.metrics import TokenUsage


class ChoiceGenerations:
    """The generations of one request.

    Args:
        model: the model's name.
        answers: one for each of ``requests``, such as a
            :class:`~stillhouse.serve.generation.answers.GeneratedAnswer`.
    """

    def __init__(
        self,
        model: str,
        engine: Engine,
        requests: Sequence[GenerationRequest],
        answers: Sequence[Any],
        usage: TokenUsage,
    ) -> None:
        self.model, self.engine, self.requests = model, engine, requests
        self.answers, self.usage = answers, usage

    def deltas(self, at_once: int) -> AsyncIterator[tuple[Any, TextDelta]]:
        """Yields answers and their deltas as they arrive. Closing the iterator cancels all generations.

        Args:
            at_once: generations that may run at the same time; the others wait for their turn.
        """
        # One choice is the common case and needs no task and no queue.
        return self._single() if len(self.requests) == 1 else self._concurrent(at_once)

    async def _single(self) -> AsyncIterator[tuple[Any, TextDelta]]:
        deltas = self.engine.generate(self.requests[0])
        try:
            async for delta in deltas:
                self.usage.add(delta)
                yield self.answers[0], delta
        finally:
            await deltas.aclose()  # type: ignore[attr-defined]

    async def _concurrent(self, at_once: int) -> AsyncIterator[tuple[Any, TextDelta]]:
        queue: asyncio.Queue[tuple[Any, TextDelta | BaseException]] = asyncio.Queue()
        places = asyncio.Semaphore(at_once)

        async def follow(answer: Any, request: GenerationRequest) -> None:
            async with places:
                deltas = self.engine.generate(request)
                try:
                    async for delta in deltas:
                        queue.put_nowait((answer, delta))
                except Exception as error:
                    queue.put_nowait((answer, error))
                finally:
                    await deltas.aclose()  # type: ignore[attr-defined]

        tasks = [
            asyncio.create_task(follow(answer, request))
            for answer, request in zip(self.answers, self.requests, strict=True)
        ]
        try:
            unfinished = len(tasks)
            while unfinished:
                answer, delta = await queue.get()
                if isinstance(delta, BaseException):
                    raise delta
                self.usage.add(delta)
                yield answer, delta
                unfinished -= delta.finish_reason is not None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def chat_generations(context: ServerContext, task: ChatTask) -> AsyncIterator[ChoiceGenerations]:
    """Loads a task's model, reads its prompt and yields its generations.

    Raises:
        InvalidRequestError: the model cannot do what the task asks for.
        StillhouseError: the model cannot be loaded, or refuses the conversation.
    """
    async with context.pool.use(task.model) as engine:
        prompt = await context.read_prompt(engine, build_chat_prompt, engine, task)
        await check_request(engine, prompt.json_schema, task.penalties)
        requests = _requests(engine, task, prompt)
        answers = [
            GeneratedAnswer(
                index, starts_in_reasoning=prompt.starts_in_reasoning, tool_parser=prompt.tool_parser()
            )
            for index in range(len(requests))
        ]
        yield ChoiceGenerations(task.model, engine, requests, answers, TokenUsage(len(prompt.ids)))


def _requests(engine: Engine, task: ChatTask, prompt: ChatPrompt) -> list[GenerationRequest]:
    sampling = dataclasses.replace(
        prompt.sampling, stop=(*prompt.sampling.stop, *engine.prompts.template.stops)
    )
    return [
        GenerationRequest(
            prompt.ids,
            seeded_sampling,
            penalties=task.penalties,
            top_logprobs=task.top_logprobs,
            json_schema=prompt.json_schema,
            preserved_tokens=prompt.preserved_tokens,
        )
        for seeded_sampling in sampling_per_choice(engine, sampling, prompt.ids, task.choices)
    ]


def sampling_per_choice(
    engine: Engine, sampling: Sampling, prompt_ids: Sequence[int], choices: int
) -> list[Sampling]:
    """Returns the sampling parameters of each choice: its own seed, limited to the context."""
    first_seed = secrets.randbits(31) if sampling.seed is None else sampling.seed
    fitted = engine.prompts.fit_to_context(sampling, len(prompt_ids))
    # Consecutive seeds, so that choice k of a seeded request can be repeated alone, with seed + k.
    return [dataclasses.replace(fitted, seed=(first_seed + index) % 2**31) for index in range(choices)]
