"""A request's body as what an engine is asked: settings, ids, schema; or what is wrong with it."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from stillhouse.errors import ContextLengthError, SchemaError, StillhouseError
from stillhouse.models import Sampling
from stillhouse.serve.engine import CAPABILITIES, Engine
from stillhouse.serve.schema import ChatRequest, CompletionRequest

Body = TypeVar("Body", bound=BaseModel)


class Refused(Exception):
    """A request that makes no sense or cannot be served, and the field that is to blame."""

    def __init__(self, message: str, param: str | None, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param, self.code = message, param, code


def needs(engine: Engine, model: str, capability: str, param: str) -> None:
    """Refuses what the engine cannot do (a key of `CAPABILITIES`)."""
    if capability not in engine.can:
        raise Refused(f"{model} gives no {CAPABILITIES[capability]}", param, "unsupported")


def parsed(kind: type[Body], body: bytes) -> Body:
    """The body as ``kind``; Refused names the first field that is wrong."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or None
        message = f"{place}: {first['msg']}" if place else first["msg"]
        raise Refused(message[:500], place) from None
    except RecursionError:
        raise Refused("the JSON is nested too deeply", None) from None


def sampling_of(asked: ChatRequest | CompletionRequest, max_tokens: int) -> Sampling:
    """The settings that a request gives, without a seed."""
    stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    return Sampling(
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        min_p=asked.min_p,
        max_tokens=max_tokens,
        stop=tuple(stop for stop in stops if stop),
    )


def seeded(
    engine: Engine, asked: ChatRequest | CompletionRequest, sampling: Sampling, ids: Sequence[int]
) -> list[Sampling]:
    """Settings of the n choices, each with a seed of its own that fits the context."""
    first = secrets.randbits(31) if asked.seed is None else asked.seed
    if isinstance(asked, ChatRequest):
        sampling = dataclasses.replace(sampling, stop=(*sampling.stop, *engine.prompts.template.stops))
    fitted = engine.prompts.fit_to_context(sampling, len(ids))
    return [dataclasses.replace(fitted, seed=(first + number) % 2**31) for number in range(asked.n)]


def schema_of(asked: ChatRequest) -> dict[str, Any] | None:
    """The JSON schema that the answer must follow; None where any text will do."""
    form = asked.response_format
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return followed({"type": "object"}, "response_format")
    schema = (form.json_schema or {}).get("schema")
    if not isinstance(schema, dict):
        raise Refused("json_schema needs a schema", "response_format.json_schema.schema")
    return followed(schema, "response_format.json_schema.schema")


def followed(schema: dict[str, Any], param: str) -> dict[str, Any]:
    """A schema that answers can be made to follow; Refused says what is wrong with it."""
    from stillhouse.models import validated_schema

    try:
        return validated_schema(schema)
    except SchemaError as error:
        raise Refused(f"{param}: {error}"[:500], param) from None


def several(given: str | list[Any]) -> list[str] | list[list[int]]:
    """One prompt or many, as many."""
    if isinstance(given, str):
        return [given]
    if not given:
        raise Refused("there is no text", None)
    return [given] if isinstance(given[0], int) else given


def text_ids(engine: Engine, text: str | list[int]) -> list[int]:
    """The ids of a text without a chat template, with the begin token where the model has one."""
    if isinstance(text, str):
        ids = list(engine.prompts.tokenizer.encode(text))
    else:
        ids, size = text, len(engine.prompts.tokenizer)
        if any(not 0 <= token < size for token in ids):
            raise Refused(f"token ids go from 0 to {size - 1}", "prompt")
    if not ids:
        raise Refused("the prompt is empty", "prompt")
    if len(ids) >= engine.context_length:
        raise ContextLengthError(
            f"the prompt has {len(ids)} tokens, the model's context {engine.context_length}"
        )
    return ids


def fitting(ids: list[int] | StillhouseError) -> list[int]:
    """The ids of a conversation, where there are any."""
    if isinstance(ids, StillhouseError):
        raise ids
    if not ids:
        raise Refused("the conversation is empty", "messages")
    return ids
