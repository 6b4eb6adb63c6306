"""The server's application: its routes, and the middleware around them.

Add an endpoint:

1. Write its handler in a file of ``endpoints/`` that is named for its path. A handler gets the
   :class:`~stillhouse.serve.context.ServerContext`, the request and, for POST, the parsed body (a class of
   ``api/schema.py``). It may raise any exception: ``error_responses.py`` turns it into a response.
2. List its route in :func:`_routes`.
3. Describe it in ``openapi.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stillhouse.serve.api.request_parsing import Body, parse_body
from stillhouse.serve.api.schema import (
    AddressedBody,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
)
from stillhouse.serve.context import ServerContext
from stillhouse.serve.dialects.messages import (
    MessageCountRequest,
    MessagesRequest,
    count_message_tokens,
    create_message,
)
from stillhouse.serve.dialects.ollama import (
    OllamaChatRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaShowRequest,
    ollama_chat,
    ollama_embed,
    ollama_generate,
    ollama_show,
    ollama_tags,
    ollama_version,
)
from stillhouse.serve.dialects.responses import ResponsesRequest, create_response
from stillhouse.serve.endpoints.chat_completions import create_chat_completion
from stillhouse.serve.endpoints.chat_page import get_page
from stillhouse.serve.endpoints.completions import create_completion
from stillhouse.serve.endpoints.embeddings import create_embeddings
from stillhouse.serve.endpoints.forward import forward
from stillhouse.serve.endpoints.health import get_health
from stillhouse.serve.endpoints.metrics import get_metrics
from stillhouse.serve.endpoints.models import list_models, retrieve_model
from stillhouse.serve.endpoints.tokenize import detokenize, tokenize
from stillhouse.serve.error_responses import not_found, with_error_responses
from stillhouse.serve.model_pool import ModelPool
from stillhouse.serve.openapi import get_openapi
from stillhouse.serve.security import SecurityMiddleware, read_body

GetHandler = Callable[[ServerContext, Request], Awaitable[Response]]
PostHandler = Callable[[ServerContext, Request, Body], Awaitable[Response]]


def create_app(
    pool: ModelPool, *, queue_size: int, hosts: Collection[str], api_key: str | None
) -> SecurityMiddleware:
    """Returns the ASGI application.

    Args:
        queue_size: answers that may be running or waiting, of all models together; further requests get
            HTTP 429.
        hosts: names by which clients may call the server (the `Host` header).
        api_key: key that clients must send as a bearer token; None requires none.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        unload_task = asyncio.create_task(pool.unload_idle())
        yield
        unload_task.cancel()
        await pool.close()

    # Starlette itself answers unknown paths in plain text.
    exception_handlers: Mapping[Any, Any] = {404: not_found, 405: not_found}
    app = Starlette(
        routes=_routes(ServerContext(pool, queue_size=queue_size)),
        lifespan=lifespan,
        exception_handlers=exception_handlers,
    )
    # Outside of Starlette, so that nothing at all runs for a request that is refused.
    return SecurityMiddleware(app, hosts=hosts, api_key=api_key)


def _routes(context: ServerContext) -> list[Route]:
    def get(path: str, handler: GetHandler) -> Route:
        async def handle(request: Request) -> Response:
            return await handler(context, request)

        return Route(path, with_error_responses(handle, context.metrics, path), methods=["GET"])

    def post(
        path: str, body_type: type[Body], handler: PostHandler[Body], *, forwards: bool = False
    ) -> Route:
        """A route for POST.

        Args:
            forwards: pass the body for a model of another server on to it, unparsed, because that server may
                support fields that this one does not. Where it is false, the handler asks that server itself,
                or refuses.
        """

        async def handle(request: Request) -> Response:
            body = await read_body(request.scope, request.receive)
            if forwards and context.pool.upstreams:
                upstream = context.pool.upstreams.get(parse_body(AddressedBody, body).model)
                if upstream:
                    return await forward(context, request, upstream, body)
            return await handler(context, request, parse_body(body_type, body))

        return Route(path, with_error_responses(handle, context.metrics, path), methods=["POST"])

    return [
        get("/v1/models", list_models),
        get("/v1/models/{name:path}", retrieve_model),  # a model's name may contain slashes
        post("/v1/chat/completions", ChatRequest, create_chat_completion, forwards=True),
        post("/v1/completions", CompletionRequest, create_completion, forwards=True),
        post("/v1/embeddings", EmbeddingRequest, create_embeddings, forwards=True),
        post("/tokenize", TokenizeRequest, tokenize),
        post("/detokenize", DetokenizeRequest, detokenize),
        post("/v1/responses", ResponsesRequest, create_response),
        post("/v1/messages", MessagesRequest, create_message),
        post("/v1/messages/count_tokens", MessageCountRequest, count_message_tokens),
        post("/api/chat", OllamaChatRequest, ollama_chat),
        post("/api/generate", OllamaGenerateRequest, ollama_generate),
        post("/api/embed", OllamaEmbedRequest, ollama_embed),
        post("/api/show", OllamaShowRequest, ollama_show),
        get("/api/tags", ollama_tags),
        get("/api/version", ollama_version),
        get("/health", get_health),
        get("/metrics", get_metrics),
        get("/openapi.json", get_openapi),
        get("/", get_page),
        get("/page/{path:path}", get_page),
    ]
