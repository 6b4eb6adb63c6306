"""What a failed request belongs to, by errors as providers write them (quoted from their documentation or
from public bug reports)."""

from __future__ import annotations

import json

import pytest

from stillhouse.models.backends.server_errors import Cause, parse_error

SENT = ("max_tokens", "temperature", "top_p", "seed", "top_k", "stop", "thinking")


def openai(message, code=None, kind=None, param=None) -> dict:
    return {"error": {"message": message, "code": code, "type": kind, "param": param}}


CASES = [
    # The account's
    (402, openai("Insufficient Balance", "invalid_request_error"), Cause.CREDIT),
    (
        429,
        openai("You exceeded your current quota, please check your plan", "insufficient_quota"),
        Cause.CREDIT,
    ),
    (
        400,
        {"error": {"message": "Your credit balance is too low to access the Anthropic API."}},
        Cause.CREDIT,
    ),
    (
        400,
        {"code": "Arrearage", "message": "Access denied, please make sure your account is in good standing."},
        Cause.CREDIT,
    ),
    (429, openai("余额不足或无可用资源包,请充值。", "1113"), Cause.CREDIT),
    (401, openai("Incorrect API key provided: sk-1"), Cause.KEY),
    (403, {"error": "forbidden"}, Cause.KEY),
    (403, openai("Your account was suspended for violation of our usage policies"), Cause.KEY),
    # The provider's
    (429, openai("Rate limit reached for requests"), Cause.TEMPORARY),
    (
        429,
        [
            {
                "error": {
                    "code": 429,
                    "message": "You exceeded your current quota. Please retry in 12.3s",
                    "status": "RESOURCE_EXHAUSTED",
                }
            }
        ],
        Cause.TEMPORARY,
    ),
    (503, "<html>busy</html>", Cause.TEMPORARY),
    (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, Cause.TEMPORARY),
    (404, openai("The model `x` does not exist", "model_not_found"), Cause.MODEL),
    # The prompt's
    (
        400,
        openai(
            "The response was filtered due to the prompt triggering Azure OpenAI's content management policy",
            "content_filter",
        ),
        Cause.CONTENT,
    ),
    (
        400,
        openai(
            "Invalid prompt: your prompt was flagged as potentially violating our usage policy",
            "invalid_prompt",
        ),
        Cause.CONTENT,
    ),
    (400, openai("Content Exists Risk", "invalid_request_error"), Cause.CONTENT),
    (400, openai("Input data may contain inappropriate content.", "data_inspection_failed"), Cause.CONTENT),
    (
        403,
        {
            "error": {
                "code": 403,
                "message": "x requires moderation. Your input was flagged",
                "metadata": {"reasons": ["violence"]},
            }
        },
        Cause.CONTENT,
    ),
    (
        400,
        openai(
            "This model's maximum context length is 4096 tokens", "context_length_exceeded", param="messages"
        ),
        Cause.CONTEXT,
    ),
    (400, openai("prompt is too long: 210000 tokens > 200000 maximum"), Cause.CONTEXT),
    (413, "", Cause.CONTEXT),
    # The parameters'
    (
        400,
        openai(
            "Unsupported value: 'temperature' does not support 0.5 with this model.",
            "unsupported_value",
            param="temperature",
        ),
        Cause.PARAMETER,
    ),
    (400, openai("`temperature` and `top_p` cannot both be specified for this model."), Cause.PARAMETER),
    (400, openai("Unrecognized request argument supplied: top_k"), Cause.PARAMETER),
    (
        400,
        [
            {
                "error": {
                    "code": 400,
                    "message": 'Invalid JSON payload received. Unknown name "seed": Cannot find field.',
                }
            }
        ],
        Cause.PARAMETER,
    ),
    (422, {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}, Cause.PARAMETER),
    (
        422,
        {"object": "error", "message": {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs"}]}},
        Cause.PARAMETER,
    ),
    # In doubt
    (400, openai("Please stop thinking about it"), Cause.REFUSED),
    (400, "no reason", Cause.REFUSED),
    (400, "", Cause.REFUSED),
]


@pytest.mark.parametrize(("status", "body", "cause"), CASES)
def test_causes(status, body, cause):
    error = parse_error(status, body if isinstance(body, str) else json.dumps(body))
    assert error.cause(SENT) is cause
    assert error.message or not body


def test_the_words_of_the_provider_behind_a_gateway_are_kept():
    body = {"error": {"message": "Provider returned error", "code": 400, "metadata": {"raw": "seed: no"}}}
    error = parse_error(400, json.dumps(body))
    assert error.message == "Provider returned error; seed: no"
    assert error.refused_parameters(SENT) == ("seed",)


def test_a_wait_that_the_server_announces_is_no_lack_of_credit():
    error = parse_error(429, json.dumps(openai("You exceeded your current quota")))
    assert error.cause(SENT) is Cause.CREDIT
    assert error.cause(SENT, wait_announced=True) is Cause.TEMPORARY
