"""`GET /health`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stillhouse.serve.context import ServerContext


async def get_health(context: ServerContext, request: Request) -> Response:
    """Reports how many answers are in progress, and how many may be."""
    return JSONResponse({"status": "ok", "answers": context.answers_in_progress, "queue": context.queue_size})
