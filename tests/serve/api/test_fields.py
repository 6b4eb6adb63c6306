"""Every field of a request is honoured, harmless or refused, and null is the default everywhere."""

import json

import pytest
from openai.types import EmbeddingCreateParams, completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params
from pydantic import BaseModel

from stillhouse.serve.api.fields import HARMLESS, REFUSED
from stillhouse.serve.api.json_schemas import output_schema
from stillhouse.serve.api.request_parsing import parse_body, penalties_from
from stillhouse.serve.api.schema import ChatRequest, CompletionRequest, EmbeddingRequest, TokenizeRequest
from stillhouse.serve.errors import InvalidRequestError

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}


def chat(**more):
    return parse_body(ChatRequest, json.dumps({**CHAT, **more}).encode())


@pytest.mark.parametrize(
    ("body_type", "required"),
    [
        (ChatRequest, CHAT),
        (CompletionRequest, {"model": "m", "prompt": "Hi"}),
        (EmbeddingRequest, {"model": "m", "input": "Hi"}),
        (TokenizeRequest, {"prompt": "Hi"}),
    ],
)
def test_null_is_the_default_of_every_field(body_type, required):
    names = [field.alias or name for name, field in body_type.model_fields.items()]
    nulls = dict.fromkeys([*names, *HARMLESS, *REFUSED, "unknown_field"])
    body = parse_body(body_type, json.dumps({**nulls, **required}).encode())
    assert body == parse_body(body_type, json.dumps(required).encode())


def test_null_is_the_default_inside_of_a_message_too():
    message = {"role": "assistant", "content": None, "tool_calls": None, "refusal": None, "audio": None}
    assert chat(messages=[message]).messages[0].content is None
    assert chat(stream_options={"include_usage": None}).stream_options.include_usage is False


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("min_tokens", 4, "'min_tokens' is not supported; leave it out"),
        ("grammar", 'root ::= "a"', "send response_format with json_schema"),
        ("guided_regex", "a+", "type string with a pattern"),
        ("guided_choice", ["a"], "an enum"),
        ("ignore_eos", True, "'ignore_eos' is not supported"),
        ("mirostat", 2, "'mirostat' is not supported"),
        ("mirostat", True, "'mirostat' is not supported"),
        ("best_of", 3, "send n"),
        ("stop_token_ids", [3], "send stop"),
        ("chat_template", "{{ 1 }}", "the model's own template"),
        ("modalities", ["text", "audio"], "'modalities' is not supported"),
        ("no_such_field", 1, "'no_such_field' is unknown; leave it out"),
    ],
)
def test_a_field_that_would_change_the_answer_is_refused(field, value, message):
    with pytest.raises(InvalidRequestError, match=message) as caught:
        chat(**{field: value})
    assert caught.value.param == field


def test_neutral_values_of_refused_fields_are_accepted():
    neutral = {name: values[0] for name, (values, _) in REFUSED.items() if values}
    known = set(ChatRequest.model_fields)
    body = chat(**{name: value for name, value in neutral.items() if name not in known})
    assert isinstance(body, BaseModel)
    assert chat(user="u", store=True, metadata={"a": "b"}, cache_prompt=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("response_format", {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}),
        ("response_format", {"type": "json_schema", "schema": SCHEMA}),
        ("response_format", {"type": "json_object", "schema": SCHEMA}),
        ("structured_outputs", {"json": SCHEMA}),
        ("structured_outputs", {"json": json.dumps(SCHEMA)}),
        ("guided_json", SCHEMA),
        ("guided_json", json.dumps(SCHEMA)),
        ("json_schema", SCHEMA),
    ],
)
def test_a_schema_is_taken_from_any_field(field, value):
    found = output_schema(chat(**{field: value}))
    assert {key: found[key] for key in SCHEMA} == SCHEMA
    completion = {"model": "m", "prompt": "Hi", field: value}
    assert output_schema(parse_body(CompletionRequest, json.dumps(completion).encode())) == found


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_json": SCHEMA, "json_schema": SCHEMA}, "json_schema"),
        ({"guided_json": "no json"}, "guided_json"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs.regex"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"response_format": {"schema": SCHEMA}}, "response_format.type"),
        ({"json_schema": {"type": "strin"}}, "json_schema"),
    ],
)
def test_schemas_that_cannot_be_followed_are_refused(fields, param):
    with pytest.raises(InvalidRequestError) as caught:
        output_schema(chat(**fields))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("body_type", "params"),
    [
        (ChatRequest, chat_params.CompletionCreateParamsBase),
        (CompletionRequest, completion_params.CompletionCreateParamsBase),
        (EmbeddingRequest, EmbeddingCreateParams),
    ],
)
def test_every_field_of_the_official_client_has_its_place(body_type, params):
    known = {*body_type.model_fields, *HARMLESS, *REFUSED}
    assert set(params.__annotations__) - known == set()


def test_penalties_by_any_of_their_names():
    penalties = penalties_from(
        chat(repeat_penalty=1.5, presence_penalty=1, frequency_penalty=-2, logit_bias={"7": -100})
    )
    assert (penalties.repetition, penalties.presence, penalties.frequency) == (1.5, 1, -2)
    assert penalties.bias == ((7, -100.0),)
    assert not penalties_from(chat(logit_bias={}, repetition_penalty=1, presence_penalty=0)).active
    for wrong in ({"logit_bias": {"x": 1}}, {"logit_bias": {"1": 101}}, {"presence_penalty": 3}):
        with pytest.raises(InvalidRequestError):
            chat(**wrong)
