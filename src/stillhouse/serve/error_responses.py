"""HTTP responses for errors: every exception of a handler becomes one in the OpenAI API's form."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from stillhouse.console import console
from stillhouse.errors import (
    ApiError,
    CapabilityError,
    ChatTemplateError,
    ContextLengthError,
    ModelNotFoundError,
    SchemaError,
    StillhouseError,
)
from stillhouse.serve.error_forms import error_in_form
from stillhouse.serve.errors import (
    ClientDisconnected,
    InvalidRequestError,
    QueueFullError,
    error_body,
)
from stillhouse.serve.metrics import ServerMetrics
from stillhouse.serve.security import BodyError
from stillhouse.serve.upstream import UpstreamError

RETRY_AFTER_S = 2

Handler = Callable[[Request], Awaitable[Response]]


def with_error_responses(handler: Handler, metrics: ServerMetrics, route: str) -> Handler:
    """Wraps a handler so that every exception becomes a response, and every response is counted."""

    async def handle(request: Request) -> Response:
        try:
            response = await handler(request)
        except Exception as error:
            response = _in_form(_error_response(error, request.url.path), request.url.path)
        metrics.count_request(route, response.status_code)
        return response

    return handle


def _in_form(response: Response, path: str) -> Response:
    """The same error in the form of the path's API."""
    if response.body:
        response.body = error_in_form(path, response.status_code, bytes(response.body))
        response.headers["content-length"] = str(len(response.body))
    return response


def not_found(request: Request, error: Any) -> Response:
    """Responds with 404 or 405 where no route has this path and method."""
    status = getattr(error, "status_code", 404)
    missing = _response(status, f"there is no {request.method} {request.url.path} here", code="not_found")
    return _in_form(missing, request.url.path)


def log_fault(error: Exception, where: str) -> None:
    """Logs the type and source lines of an internal error, but none of its text: prompts may be in it."""
    lines = " < ".join(
        f"{Path(frame.filename).name}:{frame.lineno}"
        for frame in reversed(traceback.extract_tb(error.__traceback__)[-6:])
    )
    console.warn(f"internal error: {type(error).__name__} in {where} ({lines})")


def _error_response(error: Exception, path: str) -> Response:
    if isinstance(error, ClientDisconnected):
        return Response(status_code=499)  # nginx's status for it; there is no reader left
    if isinstance(error, QueueFullError):
        return _response(429, str(error), code="busy", headers={"retry-after": str(RETRY_AFTER_S)})
    if isinstance(error, InvalidRequestError):
        return _response(400, error.message, param=error.param, code=error.code)
    if isinstance(error, BodyError):
        # The rest of the body is still on its way and must not be read as the next request.
        return _response(error.status, error.message, headers={"connection": "close"})
    if isinstance(error, UpstreamError):
        return Response(error.body, error.status, media_type="application/json", headers=error.headers)
    if isinstance(error, StillhouseError):
        return _stillhouse_error_response(error, path)
    log_fault(error, path)
    return _response(500, "internal error", kind="server_error")


def _stillhouse_error_response(error: StillhouseError, path: str) -> Response:
    if isinstance(error, ContextLengthError):
        return _response(400, str(error), param=_prompt_param(path), code="context_length_exceeded")
    if isinstance(error, ModelNotFoundError):
        return _response(404, str(error), param="model", code="model_not_found")
    if isinstance(error, SchemaError):
        return _response(400, str(error), param="response_format", code="invalid_schema")
    if isinstance(error, CapabilityError):
        return _response(400, str(error), code="unsupported")
    if isinstance(error, ApiError):
        return _response(502, str(error), kind="upstream_error")
    # Chat templates refuse some conversations, such as two user turns in a row: that is the request's fault.
    if isinstance(error, ChatTemplateError):
        return _response(400, str(error), param="messages")
    return _response(503, str(error), kind="server_error")


def _prompt_param(path: str) -> str:
    """The field that holds the prompt."""
    fields = {"/v1/completions": "prompt", "/v1/embeddings": "input", "/v1/responses": "input"}
    return fields.get(path, "messages")


def _response(
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    body = error_body(message, kind, param=param, code=code)
    return Response(body, status_code=status, media_type="application/json", headers=headers)
