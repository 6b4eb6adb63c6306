"""`POST /v1/embeddings`."""

from __future__ import annotations

import base64
import struct
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stillhouse.serve.api.request_parsing import as_list, encode_text
from stillhouse.serve.api.schema import EmbeddingRequest
from stillhouse.serve.context import ServerContext
from stillhouse.serve.engines.base import require_capability
from stillhouse.serve.errors import InvalidRequestError
from stillhouse.serve.streaming import while_connected


async def create_embeddings(context: ServerContext, request: Request, body: EmbeddingRequest) -> Response:
    """Returns one vector for each text.

    The texts of a request are worked off one after the other, in one place of the queue.
    """
    if body.dimensions is not None:
        raise InvalidRequestError("the number of dimensions cannot be chosen; leave it out", "dimensions")
    texts = as_list(body.input, "input")
    with context.reserve(1):
        embeddings, tokens = await while_connected(request, _embed(context, body.model, texts))
    data = [
        {"object": "embedding", "index": index, "embedding": _encode(embedding, body.encoding_format)}
        for index, embedding in enumerate(embeddings)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": body.model, "usage": usage})


async def _embed(
    context: ServerContext, model: str, texts: list[str] | list[list[int]]
) -> tuple[list[list[float]], int]:
    """The texts' vectors, and the number of their tokens."""
    async with context.pool.use(model) as engine:
        require_capability(engine, model, "embed", "model")
        # All texts are read first, so that one that is too long is refused before the others are computed.
        texts_ids = [await context.read_prompt(engine, encode_text, engine, text, "input") for text in texts]
        engine.check_embeddable(texts_ids)
        embeddings = await engine.embed(texts_ids)
    tokens = sum(map(len, texts_ids))
    context.metrics.count_embeddings(model, tokens)
    return embeddings, tokens


def _encode(embedding: list[float], encoding_format: str) -> Any:
    """The numbers themselves, or little-endian float32 in base64, which OpenAI's clients ask for."""
    if encoding_format == "base64":
        return base64.b64encode(struct.pack(f"<{len(embedding)}f", *embedding)).decode()
    return embedding
