"""Tools for models whose template has none: a prompt lists them, calls and results are text."""

import json

import pytest
from chat_templates import GEMMA, LLAMA3, SMOLLM2

from stillhouse.models import ChatTemplate
from stillhouse.serve.generation.tool_parser import ToolCallParser
from stillhouse.serve.generation.tool_prompt import TOOL_CALL_FORMAT, with_tool_prompt

WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
USER = {"role": "user", "content": "Rain?"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bergen"}}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": "1", "name": "weather", "content": "rain"}


@pytest.mark.parametrize("source", [SMOLLM2, LLAMA3, GEMMA])
def test_the_prompt_reaches_any_template(source):
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    messages = with_tool_prompt([USER, CALL, RESULT, USER], [WEATHER], template.render)
    text = template.render(messages, add_generation_prompt=True)
    assert json.dumps({"type": "function", "function": WEATHER}) in text
    assert text.index("<tools>") < text.index("Rain?") < text.index("<tool_response>\nrain")
    roles = [message["role"] for message in messages]
    assert roles[-3:] == ["user", "assistant", "user"]  # the result and the question after it are one turn
    assert (roles[0] == "system") is (source is not GEMMA)


def test_the_client_s_own_system_message_stays_first():
    system = {"role": "system", "content": "Be brief."}
    head, *rest = with_tool_prompt([system, USER], [WEATHER], ChatTemplate(SMOLLM2).render)
    assert head["content"].startswith("Be brief.\n\n# Tools") and rest == [USER]


def test_old_calls_are_text_that_the_parser_reads():
    _, call, result = with_tool_prompt([USER, CALL, RESULT], [], ChatTemplate(SMOLLM2).render)
    assert result == {"role": "user", "content": "<tool_response>\nrain\n</tool_response>"}
    (parsed,) = ToolCallParser(TOOL_CALL_FORMAT, ["weather"]).add(call["content"], end=True)
    assert (parsed.name, json.loads(parsed.arguments)) == ("weather", {"city": "Bergen"})
    assert call.keys() == {"role", "content"}
