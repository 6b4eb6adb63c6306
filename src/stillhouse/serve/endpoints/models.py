"""`GET /v1/models` and `GET /v1/models/{name}`."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stillhouse.errors import ModelNotFoundError
from stillhouse.serve.context import ServerContext


async def list_models(context: ServerContext, request: Request) -> Response:
    """Lists all models."""
    models = [_model(context, name) for name in context.pool.names]
    return JSONResponse({"object": "list", "data": models})


async def retrieve_model(context: ServerContext, request: Request) -> Response:
    """Returns one model."""
    name = request.path_params["name"]
    if name not in context.pool.names:
        raise ModelNotFoundError(f"there is no model {name!r} here")
    return JSONResponse(_model(context, name))


def _model(context: ServerContext, name: str) -> dict[str, Any]:
    model = {"id": name, "object": "model", "created": 0, "owned_by": "stillhouse"}
    upstream = context.pool.upstreams.get(name)
    return model | ({"forwarded_to": upstream.host} if upstream else {})
