"""`POST /v1/completions`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response

from stillhouse.serve.api.errors import InvalidRequestError
from stillhouse.serve.api.request_parsing import (
    as_list,
    encode_text,
    require_capability,
    sampling_from,
    sampling_per_choice,
)
from stillhouse.serve.api.responses import CompletionChoice, TokenUsage
from stillhouse.serve.api.schema import CompletionRequest
from stillhouse.serve.context import ServerContext
from stillhouse.serve.endpoints.generation import ChoiceGenerations, respond
from stillhouse.serve.engines.base import GenerationRequest


async def create_completion(context: ServerContext, request: Request, body: CompletionRequest) -> Response:
    """Continues texts as they are, without a chat template."""
    if body.max_tokens == 0 and not body.echo:
        raise InvalidRequestError(
            "max_tokens 0 needs echo: without it there is nothing to return", "max_tokens"
        )
    prompts = as_list(body.prompt)

    @contextlib.asynccontextmanager
    async def prepare() -> AsyncIterator[ChoiceGenerations]:
        async with context.pool.use(body.model) as engine:
            # At least one token, because prompt scores come with the first: `prompt_only` then drops it.
            sampling = sampling_from(body, max(1, body.max_tokens))
            score_prompt = body.echo and body.logprobs is not None
            if score_prompt:
                require_capability(engine, body.model, "echo", "echo")
            formatter = context.logprob_formatter(engine) if body.logprobs is not None else None
            requests, choices, prompt_tokens = [], [], 0
            for prompt in prompts:
                ids = await context.read_prompt(engine, encode_text, engine, prompt)
                prompt_tokens += len(ids)
                echo = (ids, str(engine.prompts.tokenizer.decode(ids))) if body.echo else None
                for seeded_sampling in sampling_per_choice(engine, body, sampling, ids):
                    requests.append(
                        GenerationRequest(tuple(ids), seeded_sampling, body.logprobs, score_prompt)
                    )
                    choices.append(
                        CompletionChoice(
                            len(choices),
                            logprob_formatter=formatter,
                            echo=echo,
                            prompt_only=body.max_tokens == 0,
                        )
                    )
            yield ChoiceGenerations(engine, requests, choices, TokenUsage(prompt_tokens))

    return await respond(
        context,
        request,
        body,
        prepare,
        answers=body.n * len(prompts),
        object_type="text_completion",
        chunk_type="text_completion",
    )
