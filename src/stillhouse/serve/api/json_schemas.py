"""JSON schemas of requests: the one that the answer must follow, from whatever field it is in."""

from __future__ import annotations

import json
from typing import Any

from stillhouse.serve.api.schema import ResponseFormat, SampledBody, StructuredOutputs
from stillhouse.serve.errors import InvalidRequestError
from stillhouse.serve.generation.chat_task import check_schema


def output_schema(body: SampledBody) -> dict[str, Any] | None:
    """Returns the JSON schema that the answer must follow; None where any text will do.

    Takes long for a large schema: not for the event loop.

    Raises:
        InvalidRequestError: the schema cannot be followed, or two fields give one.
    """
    given = {
        param: schema
        for param, schema in (
            _of_response_format(body.response_format),
            _of_structured_outputs(body.structured_outputs),
            ("guided_json", _parsed(body.guided_json, "guided_json")),
            ("json_schema", body.json_schema),
        )
        if schema is not None
    }
    if len(given) > 1:
        raise InvalidRequestError(f"{' and '.join(given)} exclude each other", list(given)[1])
    return next((check_schema(schema, param) for param, schema in given.items()), None)


def has_schema(body: SampledBody) -> bool:
    """Whether a body asks for an answer by a schema."""
    response_format = body.response_format
    return bool(
        (response_format and response_format.type != "text")
        or body.structured_outputs
        or body.guided_json is not None
        or body.json_schema is not None
    )


def _of_response_format(given: ResponseFormat | None) -> tuple[str, dict[str, Any] | None]:
    """The field's name, and its schema."""
    if given is None or given.type == "text":
        if given and (given.json_schema is not None or given.schema_ is not None):
            raise InvalidRequestError("a schema needs type json_schema", "response_format.type")
        return "response_format", None
    if given.type == "json_object":
        return "response_format", given.schema_ if given.schema_ is not None else {"type": "object"}
    param = "response_format.json_schema.schema"
    # Some servers take the schema itself beside the type.
    schema = given.json_schema.get("schema") if given.json_schema is not None else given.schema_
    if not isinstance(schema, dict):
        raise InvalidRequestError("json_schema needs a schema", param)
    return param, schema


def _of_structured_outputs(given: StructuredOutputs | None) -> tuple[str, dict[str, Any] | None]:
    if given is None:
        return "structured_outputs", None
    schema = _parsed(given.json_, "structured_outputs.json")
    return "structured_outputs", {"type": "object"} if schema is None and given.json_object else schema


def _parsed(schema: dict[str, Any] | str | None, param: str) -> dict[str, Any] | None:
    """A schema that may be given as text."""
    if not isinstance(schema, str):
        return schema
    try:
        parsed = json.loads(schema)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise InvalidRequestError(f"{param} is not a JSON schema", param)
    return parsed
