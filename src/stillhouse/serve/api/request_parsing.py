"""Parses request bodies into sampling parameters, token ids and JSON schemas."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from stillhouse.errors import ContextLengthError, SchemaError, StillhouseError
from stillhouse.models import Sampling
from stillhouse.serve.api.errors import InvalidRequestError
from stillhouse.serve.api.schema import ChatRequest, CompletionRequest
from stillhouse.serve.engines.base import CAPABILITIES, Engine

Body = TypeVar("Body", bound=BaseModel)


def parse_body(body_type: type[Body], body: bytes) -> Body:
    """Parses a JSON body.

    Raises:
        InvalidRequestError: names the first field that is invalid.
    """
    try:
        return body_type.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(key) for key in first["loc"]) or None
        message = f"{field}: {first['msg']}" if field else first["msg"]
        raise InvalidRequestError(message[:500], field) from None
    except RecursionError:
        raise InvalidRequestError("the JSON is nested too deeply", None) from None


def require_capability(engine: Engine, model: str, capability: str, param: str) -> None:
    """Raises InvalidRequestError if the engine lacks a capability (a key of `CAPABILITIES`)."""
    if capability not in engine.capabilities:
        raise InvalidRequestError(
            f"{model} does not support {CAPABILITIES[capability]}", param, "unsupported"
        )


def sampling_from(body: ChatRequest | CompletionRequest, max_tokens: int) -> Sampling:
    """Returns the sampling parameters of a request, without a seed."""
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        max_tokens=max_tokens,
        stop=tuple(stop for stop in stops if stop),
    )


def sampling_per_choice(
    engine: Engine, body: ChatRequest | CompletionRequest, sampling: Sampling, prompt_ids: Sequence[int]
) -> list[Sampling]:
    """Returns the sampling parameters of each of the n choices: its own seed, limited to the context."""
    first_seed = secrets.randbits(31) if body.seed is None else body.seed
    if isinstance(body, ChatRequest):
        sampling = dataclasses.replace(sampling, stop=(*sampling.stop, *engine.prompts.template.stops))
    fitted = engine.prompts.fit_to_context(sampling, len(prompt_ids))
    # Consecutive seeds, so that choice k of a seeded request can be repeated alone, with seed + k.
    return [dataclasses.replace(fitted, seed=(first_seed + index) % 2**31) for index in range(body.n)]


def response_schema(body: ChatRequest) -> dict[str, Any] | None:
    """Returns the JSON schema of `response_format`; None where any text will do."""
    response_format = body.response_format
    if response_format is None or response_format.type == "text":
        return None
    if response_format.type == "json_object":
        return check_schema({"type": "object"}, "response_format")
    schema = (response_format.json_schema or {}).get("schema")
    if not isinstance(schema, dict):
        raise InvalidRequestError("json_schema needs a schema", "response_format.json_schema.schema")
    return check_schema(schema, "response_format.json_schema.schema")


def check_schema(schema: dict[str, Any], param: str) -> dict[str, Any]:
    """Returns a schema that generation can enforce; raises InvalidRequestError for any other."""
    from stillhouse.models import validated_schema

    try:
        return validated_schema(schema)
    except SchemaError as error:
        raise InvalidRequestError(f"{param}: {error}"[:500], param) from None


def as_list(value: str | list[Any]) -> list[str] | list[list[int]]:
    """Returns the texts (or texts as token ids) of a field that takes one or several."""
    if isinstance(value, str):
        return [value]
    if not value:
        raise InvalidRequestError("there is no text", None)
    return [value] if isinstance(value[0], int) else value


def encode_text(engine: Engine, text: str | list[int]) -> list[int]:
    """Tokenizes a text without a chat template, with the begin token if the model has one."""
    if isinstance(text, str):
        ids = list(engine.prompts.tokenizer.encode(text))
    else:
        ids, vocab_size = text, len(engine.prompts.tokenizer)
        if any(not 0 <= token < vocab_size for token in ids):
            raise InvalidRequestError(f"token ids must be between 0 and {vocab_size - 1}", "prompt")
    if not ids:
        raise InvalidRequestError("the prompt is empty", "prompt")
    if len(ids) >= engine.context_length:
        raise ContextLengthError(
            f"the prompt has {len(ids)} tokens, the model's context {engine.context_length}"
        )
    return ids


def require_ids(ids: list[int] | StillhouseError) -> list[int]:
    """Returns the token ids of a conversation; raises if it could not be rendered or is empty."""
    if isinstance(ids, StillhouseError):
        raise ids
    if not ids:
        raise InvalidRequestError("the conversation is empty", "messages")
    return ids
