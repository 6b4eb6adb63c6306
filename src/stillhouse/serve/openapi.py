"""The server in OpenAPI's words; the bodies are those of schema.py."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from stillhouse import __version__
from stillhouse.serve.schema import ChatRequest, CompletionRequest, EmbeddingRequest

_RESPONSES = {
    "200": {"description": "The answer"},
    "default": {"description": "An error in the OpenAI API's form"},
}


def description() -> dict[str, Any]:
    """The server's OpenAPI document."""
    schemas: dict[str, Any] = {}

    def reference(kind: type[BaseModel]) -> dict[str, str]:
        made = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(made.pop("$defs", {}))
        schemas[kind.__name__] = made
        return {"$ref": f"#/components/schemas/{kind.__name__}"}

    def post(kind: type[BaseModel], summary: str) -> dict[str, Any]:
        body = {"required": True, "content": {"application/json": {"schema": reference(kind)}}}
        return {"post": {"summary": summary, "requestBody": body, "responses": _RESPONSES}}

    paths = {
        "/v1/models": {"get": {"summary": "All models", "responses": _RESPONSES}},
        "/v1/chat/completions": post(ChatRequest, "The next turn of a conversation"),
        "/v1/completions": post(CompletionRequest, "How a text goes on"),
        "/v1/embeddings": post(EmbeddingRequest, "Texts as vectors"),
        "/health": {"get": {"summary": "Whether the server is there", "responses": _RESPONSES}},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Stillhouse", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas},
    }
