"""Bodies of errors in the form of the API that a path belongs to."""

from __future__ import annotations

import json
from typing import Any

_MESSAGES_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_in_form(path: str, status: int, body: bytes) -> bytes:
    """Returns the body of an error in the form that clients of ``path`` read.

    Args:
        body: the error in the OpenAI API's form, which most paths have.
    """
    if path.startswith("/v1/messages"):
        return json.dumps(messages_error(status, _message(body)), ensure_ascii=False).encode()
    if path.startswith("/api/"):
        return json.dumps(ollama_error(_message(body)), ensure_ascii=False).encode()
    return body


def messages_error(status: int, message: str) -> dict[str, Any]:
    """An error of Anthropic's Messages API."""
    kind = _MESSAGES_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def ollama_error(message: str) -> dict[str, Any]:
    """An error of Ollama's API."""
    return {"error": message}


def _message(body: bytes) -> str:
    return str(json.loads(body)["error"]["message"])
