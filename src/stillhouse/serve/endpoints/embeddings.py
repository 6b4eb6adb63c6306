"""`POST /v1/embeddings`."""

from __future__ import annotations

import base64
import struct
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stillhouse.serve.api.errors import InvalidRequestError
from stillhouse.serve.api.request_parsing import as_list, encode_text, require_capability
from stillhouse.serve.api.schema import EmbeddingRequest
from stillhouse.serve.context import ServerContext


async def create_embeddings(context: ServerContext, request: Request, body: EmbeddingRequest) -> Response:
    """Returns one vector for each text."""
    if body.dimensions is not None:
        raise InvalidRequestError("the number of dimensions cannot be chosen; leave it out", "dimensions")
    texts = as_list(body.input)
    with context.reserve(len(texts)):
        async with context.pool.use(body.model) as engine:
            require_capability(engine, body.model, "embed", "model")
            texts_ids = [await context.read_prompt(engine, encode_text, engine, text) for text in texts]
            embeddings = [await engine.embed(ids) for ids in texts_ids]
    tokens = sum(map(len, texts_ids))
    data = [
        {"object": "embedding", "index": index, "embedding": _encode(embedding, body.encoding_format)}
        for index, embedding in enumerate(embeddings)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": body.model, "usage": usage})


def _encode(embedding: list[float], encoding_format: str) -> Any:
    """The numbers themselves, or little-endian float32 in base64, which OpenAI's clients ask for."""
    if encoding_format == "base64":
        return base64.b64encode(struct.pack(f"<{len(embedding)}f", *embedding)).decode()
    return embedding
