"""Runs the generations of one request, and responds with a whole answer or a stream of events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from stillhouse.serve.api.responses import ChatChoice, Envelope, TokenUsage
from stillhouse.serve.api.schema import ChatRequest, CompletionRequest
from stillhouse.serve.context import ServerContext
from stillhouse.serve.engines.base import Engine, GenerationRequest, TextDelta
from stillhouse.serve.streaming import EventStream, while_connected


class ChoiceGenerations:
    """The generations of one request: one for each choice of its answer.

    Args:
        choices: :class:`~stillhouse.serve.api.responses.ChatChoice` or ``CompletionChoice``, one for each of
            ``requests``.
    """

    def __init__(
        self, engine: Engine, requests: Sequence[GenerationRequest], choices: Sequence[Any], usage: TokenUsage
    ) -> None:
        self.engine, self.requests, self.choices, self.usage = engine, requests, choices, usage

    def deltas(self) -> AsyncIterator[tuple[Any, TextDelta]]:
        """Yields the deltas of all choices as they arrive. Closing the iterator cancels all generations."""
        # One choice is the common case and needs no task and no queue.
        return self._single() if len(self.requests) == 1 else self._concurrent()

    async def _single(self) -> AsyncIterator[tuple[Any, TextDelta]]:
        deltas = self.engine.generate(self.requests[0])
        try:
            async for delta in deltas:
                self.usage.add(delta)
                yield self.choices[0], delta
        finally:
            await deltas.aclose()  # type: ignore[attr-defined]

    async def _concurrent(self) -> AsyncIterator[tuple[Any, TextDelta]]:
        queue: asyncio.Queue[tuple[Any, TextDelta | BaseException]] = asyncio.Queue()

        async def follow(choice: Any, request: GenerationRequest) -> None:
            deltas = self.engine.generate(request)
            try:
                async for delta in deltas:
                    queue.put_nowait((choice, delta))
            except Exception as error:
                queue.put_nowait((choice, error))
            finally:
                await deltas.aclose()  # type: ignore[attr-defined]

        tasks = [
            asyncio.create_task(follow(choice, request))
            for choice, request in zip(self.choices, self.requests, strict=True)
        ]
        try:
            unfinished = len(tasks)
            while unfinished:
                choice, delta = await queue.get()
                if isinstance(delta, BaseException):
                    raise delta
                self.usage.add(delta)
                yield choice, delta
                unfinished -= delta.finish_reason is not None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def respond(
    context: ServerContext,
    request: Request,
    body: ChatRequest | CompletionRequest,
    prepare: Callable[[], contextlib.AbstractAsyncContextManager[ChoiceGenerations]],
    *,
    answers: int,
    object_type: str,
    chunk_type: str,
) -> Response:
    """Responds with a whole answer or, where the body asks for it, a stream.

    Args:
        prepare: loads the model and reads the prompt; its exit releases the model.
        answers: places that the request takes in the queue.
        object_type: the API's name for a whole answer.
        chunk_type: the API's name for a chunk of a stream.
    """
    # The stack outlives this function for a stream: EventStream closes it after the last event.
    stack = contextlib.AsyncExitStack()
    stack.enter_context(context.reserve(answers))

    async def whole() -> Response:
        generations = await stack.enter_async_context(prepare())
        envelope = Envelope(object_type, body.model)
        async for choice, delta in generations.deltas():
            choice.add(delta)
        choices = [choice.whole() for choice in generations.choices]
        await stack.aclose()
        answer = orjson.dumps(envelope.wrap(choices, usage=generations.usage.to_json()))
        return Response(answer, media_type="application/json")

    async def stream() -> Response:
        generations = await stack.enter_async_context(prepare())
        include_usage = bool(body.stream_options and body.stream_options.include_usage)
        events = _events(generations, Envelope(chunk_type, body.model), include_usage=include_usage)
        return EventStream(await anext(events), events, stack)

    try:
        return await while_connected(request, stream() if body.stream else whole())
    except BaseException:
        await stack.aclose()
        raise


async def _events(
    generations: ChoiceGenerations, envelope: Envelope, *, include_usage: bool
) -> AsyncIterator[bytes]:
    """Yields the server-sent events of an answer."""
    deltas = generations.deltas()
    try:
        opened: set[int] = set()
        async for choice, delta in deltas:
            if isinstance(choice, ChatChoice) and choice.index not in opened:
                opened.add(choice.index)
                yield _event(envelope.wrap([choice.opening()]))
            for chunk in choice.add(delta):
                yield _event(envelope.wrap([chunk]))
        if include_usage:
            yield _event(envelope.wrap([], usage=generations.usage.to_json()))
        yield b"data: [DONE]\n\n"
    finally:
        await deltas.aclose()  # type: ignore[attr-defined]


def _event(data: Any) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"
