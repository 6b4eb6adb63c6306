"""`POST /v1/completions`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response

from stillhouse.serve.api.json_schemas import has_schema, output_schema
from stillhouse.serve.api.logprobs import logprob_formatter
from stillhouse.serve.api.request_parsing import as_list, encode_text, penalties_from, sampling_from
from stillhouse.serve.api.responses import CompletionChoice, CompletionWriter
from stillhouse.serve.api.schema import CompletionRequest
from stillhouse.serve.context import ServerContext
from stillhouse.serve.engines.base import GenerationRequest, check_request, require_capability
from stillhouse.serve.errors import InvalidRequestError
from stillhouse.serve.generation.choices import ChoiceGenerations, sampling_per_choice
from stillhouse.serve.generation.respond import respond
from stillhouse.serve.metrics import TokenUsage


async def create_completion(context: ServerContext, request: Request, body: CompletionRequest) -> Response:
    """Continues texts as they are, without a chat template."""
    if body.max_tokens == 0 and not body.echo:
        raise InvalidRequestError(
            "max_tokens 0 needs echo: without it there is nothing to return", "max_tokens"
        )
    prompts = as_list(body.prompt, "prompt")
    # Compiling a large schema takes up to seconds: not in the event loop.
    schema = await asyncio.to_thread(output_schema, body) if has_schema(body) else output_schema(body)

    @contextlib.asynccontextmanager
    async def prepare() -> AsyncIterator[ChoiceGenerations]:
        async with context.pool.use(body.model) as engine:
            # At least one token, because prompt scores come with the first: `prompt_only` then drops it.
            sampling = sampling_from(body, max(1, body.max_tokens))
            score_prompt = body.echo and body.logprobs is not None
            if score_prompt:
                require_capability(engine, body.model, "echo", "echo")
            penalties = penalties_from(body)
            await check_request(engine, schema, penalties)
            formatter = logprob_formatter(context, engine) if body.logprobs is not None else None
            requests, choices, prompt_tokens = [], [], 0
            for prompt in prompts:
                ids = await context.read_prompt(engine, encode_text, engine, prompt, "prompt")
                prompt_tokens += len(ids)
                echo = (ids, str(engine.prompts.tokenizer.decode(ids))) if body.echo else None
                for seeded_sampling in sampling_per_choice(engine, sampling, ids, body.n):
                    requests.append(
                        GenerationRequest(
                            tuple(ids),
                            seeded_sampling,
                            penalties=penalties,
                            top_logprobs=body.logprobs,
                            score_prompt=score_prompt,
                            json_schema=schema,
                        )
                    )
                    choices.append(
                        CompletionChoice(
                            len(choices),
                            logprob_formatter=formatter,
                            echo=echo,
                            prompt_only=body.max_tokens == 0,
                        )
                    )
            yield ChoiceGenerations(body.model, engine, requests, choices, TokenUsage(prompt_tokens))

    include_usage = bool(body.stream_options and body.stream_options.include_usage)
    writer = CompletionWriter(body.model, include_usage=include_usage)
    return await respond(context, request, prepare, writer, answers=body.n * len(prompts), stream=body.stream)
