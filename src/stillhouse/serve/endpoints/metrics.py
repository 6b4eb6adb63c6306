"""`GET /metrics`: counters for Prometheus."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from stillhouse.serve.context import ServerContext
from stillhouse.serve.metrics import MEDIA_TYPE


async def get_metrics(context: ServerContext, request: Request) -> Response:
    """Returns all counters as text."""
    text = context.metrics.to_text(
        answers=context.answers_in_progress,
        queue_size=context.queue_size,
        loaded=[
            (name, context.pool.loaded_engine(name) is not None)
            for name in context.pool.names
            if name not in context.pool.upstreams
        ],
    )
    return Response(text, media_type=MEDIA_TYPE)
