"""The OpenAI API's chat request becomes a task."""

import asyncio
import json

import pytest

from stillhouse.serve.api.chat_request import chat_task
from stillhouse.serve.api.request_parsing import parse_body
from stillhouse.serve.api.schema import ChatRequest
from stillhouse.serve.errors import InvalidRequestError

USER = {"role": "user", "content": "Hi"}
BEGUN = {"role": "assistant", "content": "My favourite colour is"}


def task(**fields):
    body = {"model": "m", "messages": [USER], **fields}
    return asyncio.run(chat_task(parse_body(ChatRequest, json.dumps(body).encode())))


@pytest.mark.parametrize("arguments", ["", "  ", "{}", None])
def test_a_replayed_call_without_arguments_has_none(arguments):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]
    (replayed,) = task(messages=messages).messages[1]["tool_calls"]
    assert replayed["function"] == {"name": "f", "arguments": {}}


@pytest.mark.parametrize(
    ("fields", "variables"),
    [
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}),
        ({"enable_thinking": True}, {"enable_thinking": True}),
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False}),
        (
            {"chat_template_kwargs": {"enable_thinking": True}, "enable_thinking": False},
            {"enable_thinking": True},
        ),
    ],
)
def test_switches_of_the_template_by_any_of_their_names(fields, variables):
    assert task(**fields).template_variables == variables


@pytest.mark.parametrize("role", ["user", "tool", "assistant", "system"])
def test_parts_of_text_are_one_text(role):
    parts = [{"type": "text", "text": "It "}, {"type": "text", "text": "rains."}]
    (message,) = task(messages=[{"role": role, "tool_call_id": "1", "content": parts}]).messages
    assert message["content"] == "It rains."


def test_thoughts_and_refusals_by_any_of_their_names():
    messages = task(messages=[{"role": "assistant", "reasoning": "hm", "refusal": "No."}, USER]).messages
    assert messages[0] == {"role": "assistant", "content": "No.", "reasoning_content": "hm"}


@pytest.mark.parametrize(
    "fields",
    [
        {"continue_final_message": True},
        {"continue_final_message": True, "add_generation_prompt": False},
        {"messages": [USER, {**BEGUN, "prefix": True}]},
        {"messages": [USER, {**BEGUN, "partial": True}]},
    ],
)
def test_a_begun_answer_is_continued(fields):
    assert task(**{"messages": [USER, BEGUN], **fields}).continue_final_message
    assert not task(messages=[USER, BEGUN]).continue_final_message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"continue_final_message": True}, "role assistant"),
        ({"add_generation_prompt": False}, "needs continue_final_message"),
        ({"messages": [{**BEGUN, "prefix": True}, USER]}, "only the last message"),
        (
            {
                "messages": [USER, BEGUN],
                "continue_final_message": True,
                "response_format": {"type": "json_object"},
            },
            "must follow a schema",
        ),
        ({"messages": [{"role": "assistant", "function_call": {"name": "f"}}]}, "send tool_calls"),
        ({"top_logprobs": 2}, "needs logprobs"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields, message):
    with pytest.raises(InvalidRequestError, match=message):
        task(**fields)
