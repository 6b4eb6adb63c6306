"""Responds with a whole answer or a stream of events, in the form of an `AnswerWriter`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from stillhouse.serve.context import ServerContext
from stillhouse.serve.engines.base import TextDelta
from stillhouse.serve.generation.chat_task import ChatTask
from stillhouse.serve.generation.choices import ChoiceGenerations, chat_generations
from stillhouse.serve.streaming import EventStream, while_connected

Prepare = Callable[[], contextlib.AbstractAsyncContextManager[ChoiceGenerations]]


class AnswerWriter(Protocol):
    """Writes the answers of one request as bodies or events.

    The calls come in this order: ``begin``, then for a stream ``add`` for each delta and ``end``, or for a
    whole answer ``whole``, after all deltas were added to their answers.
    """

    media_type: str
    """Of a stream."""

    def begin(self, generations: ChoiceGenerations) -> bytes:
        """Returns the events before the first delta; the prompt's tokens are known."""
        ...

    def add(self, answer: Any, delta: TextDelta) -> bytes:
        """Adds a delta to its answer, and returns its events; empty if there are none yet."""
        ...

    def end(self) -> bytes:
        """Returns the events after the last delta."""
        ...

    def error(self, message: str) -> bytes:
        """Returns the event of an error in the middle of a stream."""
        ...

    def whole(self) -> bytes:
        """Returns the JSON body of a whole answer."""
        ...


async def respond_to_chat(
    context: ServerContext, request: Request, task: ChatTask, writer: AnswerWriter, *, stream: bool
) -> Response:
    """Generates the answers of a chat, and responds with them.

    Raises:
        InvalidRequestError: the model cannot do what the task asks for.
        QueueFullError: no place is free.
        StillhouseError: the model cannot be loaded, or refuses the conversation.
    """
    return await respond(
        context,
        request,
        lambda: chat_generations(context, task),
        writer,
        answers=task.choices,
        stream=stream,
    )


async def respond(
    context: ServerContext,
    request: Request,
    prepare: Prepare,
    writer: AnswerWriter,
    *,
    answers: int,
    stream: bool,
) -> Response:
    """Responds with a whole answer or a stream.

    Args:
        prepare: loads the model and reads the prompt; its exit releases the model.
        answers: places in the queue that the request would like.
    """
    # The stack outlives this function for a stream: EventStream closes it after the last event.
    stack = contextlib.AsyncExitStack()
    places = stack.enter_context(context.reserve(answers))
    started = time.monotonic()

    async def whole() -> Response:
        generations = await stack.enter_async_context(prepare())
        stack.enter_context(context.metrics.measure(generations.model, generations.usage, started))
        writer.begin(generations)
        async for answer, delta in generations.deltas(places):
            answer.add(delta)
        body = writer.whole()
        await stack.aclose()
        return Response(body, media_type="application/json")

    async def streamed() -> Response:
        generations = await stack.enter_async_context(prepare())
        stack.enter_context(context.metrics.measure(generations.model, generations.usage, started))
        events = _events(generations, writer, places)
        return EventStream(
            await anext(events), events, stack, media_type=writer.media_type, error=writer.error
        )

    try:
        return await while_connected(request, streamed() if stream else whole())
    except BaseException:
        await stack.aclose()
        raise


async def _events(generations: ChoiceGenerations, writer: AnswerWriter, places: int) -> AsyncIterator[bytes]:
    """Yields the events of an answer."""
    deltas = generations.deltas(places)
    # With the first delta, so that an error before it has a status of its own.
    opening = writer.begin(generations)
    try:
        async for answer, delta in deltas:
            if events := opening + writer.add(answer, delta):
                yield events
            opening = b""
        yield writer.end()
    finally:
        await deltas.aclose()  # type: ignore[attr-defined]
