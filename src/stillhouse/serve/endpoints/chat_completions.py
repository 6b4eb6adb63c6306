"""`POST /v1/chat/completions`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from stillhouse.serve.api.chat_prompt import (
    ChatPrompt,
    ToolOptions,
    build_chat_prompt,
    template_messages,
    tool_options,
)
from stillhouse.serve.api.errors import InvalidRequestError
from stillhouse.serve.api.request_parsing import response_schema, sampling_per_choice
from stillhouse.serve.api.responses import ChatChoice, LogprobFormatter, TokenUsage
from stillhouse.serve.api.schema import ChatRequest
from stillhouse.serve.context import ServerContext
from stillhouse.serve.endpoints.generation import ChoiceGenerations, respond
from stillhouse.serve.engines.base import Engine, GenerationRequest


async def create_chat_completion(context: ServerContext, request: Request, body: ChatRequest) -> Response:
    """Generates the next turn of a conversation."""
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequestError("top_logprobs needs logprobs: true", "top_logprobs")
    # Compiling a large schema takes up to seconds: not in the event loop. A plain chat skips the thread.
    has_schemas = body.tools or (body.response_format and body.response_format.type != "text")
    tools, schema = (
        await asyncio.to_thread(_tools_and_schema, body) if has_schemas else _tools_and_schema(body)
    )
    messages = template_messages(body.messages)

    @contextlib.asynccontextmanager
    async def prepare() -> AsyncIterator[ChoiceGenerations]:
        async with context.pool.use(body.model) as engine:
            formatter = context.logprob_formatter(engine) if body.logprobs else None
            prompt = await context.read_prompt(
                engine, build_chat_prompt, engine, body, messages, tools, schema
            )
            yield _generations(engine, body, prompt, formatter)

    return await respond(
        context,
        request,
        body,
        prepare,
        answers=body.n,
        object_type="chat.completion",
        chunk_type="chat.completion.chunk",
    )


def _tools_and_schema(body: ChatRequest) -> tuple[ToolOptions, dict[str, Any] | None]:
    """The tools of a chat, and the schema that its answer must follow."""
    tools = tool_options(body)
    return tools, None if tools.forced else response_schema(body)


def _generations(
    engine: Engine, body: ChatRequest, prompt: ChatPrompt, formatter: LogprobFormatter | None
) -> ChoiceGenerations:
    """The n generations of a chat."""
    requests = [
        GenerationRequest(
            prompt.ids,
            sampling,
            top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            json_schema=prompt.json_schema,
            preserved_tokens=prompt.preserved_tokens,
        )
        for sampling in sampling_per_choice(engine, body, prompt.sampling, prompt.ids)
    ]
    choices = [
        ChatChoice(
            index,
            starts_in_reasoning=prompt.starts_in_reasoning,
            logprob_formatter=formatter,
            tool_parser=prompt.tool_parser(),
        )
        for index in range(len(requests))
    ]
    return ChoiceGenerations(engine, requests, choices, TokenUsage(len(prompt.ids)))
