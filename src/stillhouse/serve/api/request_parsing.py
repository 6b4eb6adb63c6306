"""Parses request bodies into tasks, sampling parameters and token ids."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from stillhouse.models import LogitPenalties, Sampling
from stillhouse.serve.api.fields import check_extra_fields
from stillhouse.serve.api.schema import SampledBody
from stillhouse.serve.engines.base import Engine
from stillhouse.serve.errors import InvalidRequestError

Body = TypeVar("Body", bound=BaseModel)
MAX_TEXTS = 2048
"""Prompts, or texts to embed, of one request; the OpenAI API has the same limit."""


def parse_body(body_type: type[Body], body: bytes) -> Body:
    """Parses a JSON body.

    Raises:
        InvalidRequestError: names the first field that is invalid, refused or unknown.
    """
    try:
        parsed = body_type.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(key) for key in first["loc"]) or None
        message = f"{field}: {first['msg']}" if field else first["msg"]
        raise InvalidRequestError(message[:500], field) from None
    except RecursionError:
        raise InvalidRequestError("the JSON is nested too deeply", None) from None
    check_extra_fields(parsed.model_extra or {})
    return parsed


def sampling_from(body: SampledBody, max_tokens: int) -> Sampling:
    """Returns the sampling parameters of a request."""
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=max(0, body.top_k),
        min_p=body.min_p,
        max_tokens=max_tokens,
        seed=body.seed,
        stop=tuple(stop for stop in stops if stop),
    )


def penalties_from(body: SampledBody) -> LogitPenalties:
    """Returns the penalties and biases of a request."""
    return LogitPenalties(
        repetition=body.repetition_penalty,
        presence=body.presence_penalty,
        frequency=body.frequency_penalty,
        bias=tuple((int(token), bias) for token, bias in body.logit_bias.items()),
    )


def as_list(value: str | list[Any], param: str) -> list[str] | list[list[int]]:
    """Returns the texts (or texts as token ids) of a field that takes one or several.

    Raises:
        InvalidRequestError: there are none, or more than ``MAX_TEXTS``.
    """
    if isinstance(value, str):
        return [value]
    if not value:
        raise InvalidRequestError("there is no text", param)
    texts = [value] if isinstance(value[0], int) else value
    if len(texts) > MAX_TEXTS:
        raise InvalidRequestError(f"{len(texts):,} texts; the limit of a request is {MAX_TEXTS:,}", param)
    return texts


def encode_text(engine: Engine, text: str | list[int], param: str) -> list[int]:
    """Tokenizes a text without a chat template, with the begin token if the model has one."""
    if isinstance(text, str):
        ids = list(engine.prompts.tokenizer.encode(text))
    else:
        ids, vocab_size = text, len(engine.prompts.tokenizer)
        if any(not 0 <= token < vocab_size for token in ids):
            raise InvalidRequestError(f"token ids must be between 0 and {vocab_size - 1}", param)
    if not ids:
        raise InvalidRequestError("the text is empty", param)
    if len(ids) >= engine.context_length:
        raise engine.prompts.too_long("the text", len(ids))
    return ids
