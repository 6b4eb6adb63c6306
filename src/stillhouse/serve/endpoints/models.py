"""`GET /v1/models` and `GET /v1/models/{name}`."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stillhouse.errors import ModelNotFoundError
from stillhouse.serve.context import ServerContext


async def list_models(context: ServerContext, request: Request) -> Response:
    """Lists all models."""
    models = [await _model(context, name) for name in context.pool.names]
    return JSONResponse({"object": "list", "data": models})


async def retrieve_model(context: ServerContext, request: Request) -> Response:
    """Returns one model."""
    name = request.path_params["name"]
    if name not in context.pool.names:
        raise ModelNotFoundError(f"there is no model {name!r} here")
    return JSONResponse(await _model(context, name))


async def _model(context: ServerContext, name: str) -> dict[str, Any]:
    model: dict[str, Any] = {"id": name, "object": "model", "created": 0, "owned_by": "stillhouse"}
    if upstream := context.pool.upstreams.get(name):
        return model | {"forwarded_to": upstream.host}
    sizes, engine = await context.pool.sizes(name), context.pool.loaded_engine(name)
    length = engine.context_length if engine else sizes.context_length if sizes else None
    if length is not None:
        # The names that clients look for: vLLM's, OpenRouter's, Groq's.
        model |= dict.fromkeys(("max_model_len", "context_length", "context_window"), length)
    if sizes:
        model["meta"] = {  # llama.cpp's names
            "n_ctx": length,
            "n_ctx_train": sizes.trained_context_length,
            "n_vocab": sizes.vocab_size,
            "n_embd": sizes.hidden_size,
            "n_params": sizes.parameters,
            "size": sizes.size_bytes,
        }
    return model
