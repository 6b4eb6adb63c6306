"""Forwards a request to the server that has its model."""

from __future__ import annotations

import contextlib

from starlette.requests import Request
from starlette.responses import Response

from stillhouse.serve.context import ServerContext
from stillhouse.serve.streaming import EventStream, while_connected
from stillhouse.serve.upstream import Upstream


async def forward(
    context: ServerContext, request: Request, upstream: Upstream, body: bytes, path: str | None = None
) -> Response:
    """Responds with another server's answer, whole or streamed.

    It takes one place in the queue, whatever its `n`: the other server has limits of its own.

    Args:
        path: behind the other server's base address; that of the request without `/v1`, if it is None.
    """
    exchange = upstream.post(path or request.url.path.removeprefix("/v1"), body)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(context.reserve(1))
        answer = await while_connected(request, stack.enter_async_context(exchange))
        if isinstance(answer, bytes):
            return Response(answer, media_type="application/json")
        first = await while_connected(request, anext(answer))
        # EventStream closes the stack after the last event, so this block must not.
        return EventStream(first, answer, stack.pop_all())
