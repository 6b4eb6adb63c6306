"""`POST /v1/chat/completions`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from stillhouse.serve.api.chat_request import chat_task
from stillhouse.serve.api.responses import ChatCompletionWriter
from stillhouse.serve.api.schema import ChatRequest
from stillhouse.serve.context import ServerContext
from stillhouse.serve.generation.respond import respond_to_chat


async def create_chat_completion(context: ServerContext, request: Request, body: ChatRequest) -> Response:
    """Generates the next turn of a conversation."""
    task = await chat_task(body)
    writer = ChatCompletionWriter(
        body.model,
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        context=context if body.logprobs else None,
    )
    return await respond_to_chat(context, request, task, writer, stream=body.stream)
