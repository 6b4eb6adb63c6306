"""`GET /openapi.json`: the server's OpenAPI document. Its bodies are those of api/schema.py and dialects/."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stillhouse import __version__
from stillhouse.serve.api.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
)
from stillhouse.serve.context import ServerContext
from stillhouse.serve.dialects.messages import MessageCountRequest, MessagesRequest
from stillhouse.serve.dialects.ollama import (
    OllamaChatRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaShowRequest,
)
from stillhouse.serve.dialects.responses import ResponsesRequest

_RESPONSES = {
    "200": {"description": "The answer"},
    "default": {"description": "An error in the form of the path's API"},
}


async def get_openapi(context: ServerContext, request: Request) -> Response:
    """Returns the OpenAPI document."""
    return JSONResponse(openapi_document())


def openapi_document() -> dict[str, Any]:
    """Builds the OpenAPI document."""
    schemas: dict[str, Any] = {}

    def reference(body_type: type[BaseModel]) -> dict[str, str]:
        schema = body_type.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[body_type.__name__] = schema
        return {"$ref": f"#/components/schemas/{body_type.__name__}"}

    def post(body_type: type[BaseModel], summary: str) -> dict[str, Any]:
        body = {"required": True, "content": {"application/json": {"schema": reference(body_type)}}}
        return {"post": {"summary": summary, "requestBody": body, "responses": _RESPONSES}}

    paths = {
        "/v1/models": {"get": {"summary": "List all models", "responses": _RESPONSES}},
        "/v1/chat/completions": post(ChatRequest, "Generate the next turn of a conversation"),
        "/v1/completions": post(CompletionRequest, "Continue a text"),
        "/v1/embeddings": post(EmbeddingRequest, "Return the embeddings of texts"),
        "/tokenize": post(TokenizeRequest, "Return the token ids of a text or a conversation"),
        "/detokenize": post(DetokenizeRequest, "Return the text of token ids"),
        "/v1/responses": post(ResponsesRequest, "Generate the next turn (OpenAI's Responses)"),
        "/v1/messages": post(MessagesRequest, "Generate the next turn (Anthropic's Messages)"),
        "/v1/messages/count_tokens": post(MessageCountRequest, "Count a prompt's tokens (Anthropic's)"),
        "/api/chat": post(OllamaChatRequest, "Generate the next turn (Ollama's chat)"),
        "/api/generate": post(OllamaGenerateRequest, "Answer a prompt (Ollama's generate)"),
        "/api/embed": post(OllamaEmbedRequest, "Return the embeddings of texts (Ollama's embed)"),
        "/api/show": post(OllamaShowRequest, "Describe a model (Ollama's show)"),
        "/api/tags": {"get": {"summary": "List all models (Ollama's tags)", "responses": _RESPONSES}},
        "/api/version": {"get": {"summary": "Return the version", "responses": _RESPONSES}},
        "/metrics": {"get": {"summary": "Return counters for Prometheus", "responses": _RESPONSES}},
        "/health": {"get": {"summary": "Report the server's health", "responses": _RESPONSES}},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Stillhouse",
            "version": __version__,
            "description": "null stands for the default of any field. Unknown fields are refused.",
        },
        "paths": paths,
        "components": {"schemas": schemas},
    }
