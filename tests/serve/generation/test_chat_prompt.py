"""Prompts of chats: switches of the template, reasoning, continued messages, forced calls."""

import dataclasses
from types import SimpleNamespace

import pytest
from chat_templates import QWEN3, QWEN_TOOLS, THINK_PROMPT, tokenizer
from tool_cases import REFERRING

from stillhouse.models import ChatTemplate, PromptEncoder, Sampling
from stillhouse.serve.errors import InvalidRequestError
from stillhouse.serve.generation.chat_prompt import build_chat_prompt
from stillhouse.serve.generation.chat_task import ChatTask, check_schema, choose_tools

USER = {"role": "user", "content": "Hi"}
TOOLS = [{"name": "draw", "parameters": REFERRING}, {"name": "look"}]
SWITCH = (
    "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% if NAME is defined and not NAME %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)


def prompt(source, **fields):
    """The built prompt, and its text."""
    prompts = PromptEncoder(tokenizer(), ChatTemplate(source), 4096, seed=0)
    engine = SimpleNamespace(prompts=prompts, capabilities={"schema"}, context_length=4096)
    task = ChatTask(**{"model": "m", "messages": (USER,), "sampling": Sampling(), **fields})
    built = build_chat_prompt(engine, task)
    return built, tokenizer().decode(list(built.ids))


@pytest.mark.parametrize("name", ["enable_thinking", "thinking"])
@pytest.mark.parametrize(
    "fields", [{"template_variables": {"enable_thinking": False}}, {"reasoning_effort": "none"}]
)
def test_reasoning_is_turned_off_by_the_name_that_the_template_uses(name, fields):
    source = SWITCH.replace("NAME", name)
    assert prompt(source)[1].endswith("Hi<|im_start|>")
    assert prompt(source, **fields)[1].endswith("<think>\n\n</think>\n\n")
    assert prompt(source, template_variables={"enable_thinking": None})[1].endswith("<|im_start|>")


@pytest.mark.parametrize(
    "fields",
    [
        {"output_schema": {"type": "object"}},
        {"tools": choose_tools(TOOLS, "required")},
        {"messages": (USER, {"role": "assistant", "content": "The"}), "continue_final_message": True},
    ],
)
def test_an_answer_that_skips_reasoning_begins_as_the_template_writes_it(fields):
    text = prompt(SWITCH.replace("NAME", "enable_thinking"), **fields)[1]
    assert "<|im_start|><think>\n\n</think>\n\n" in text
    kept = prompt(
        SWITCH.replace("NAME", "enable_thinking"), **fields, template_variables={"enable_thinking": True}
    )
    assert "</think>" not in kept[1]


def test_a_variable_that_the_template_does_not_use_is_refused():
    assert prompt(QWEN_TOOLS, template_variables={"enable_thinking": False})  # it does not reason anyway
    for variables in ({"enable_thinking": True}, {"builtin_tools": ["x"]}, {"messages": []}, {"a b": 1}):
        with pytest.raises(InvalidRequestError) as caught:
            prompt(QWEN_TOOLS, template_variables=variables)
        assert caught.value.param == f"chat_template_kwargs.{next(iter(variables))}"


@pytest.mark.parametrize(
    ("source", "final", "ending", "in_reasoning"),
    [
        (QWEN_TOOLS, {"content": "The sky"}, "assistant\nThe sky", False),
        (QWEN_TOOLS, {"content": "a <|im_end|> b"}, "assistant\na <|im_end|> b", False),
        (QWEN3, {"content": "", "reasoning_content": "First"}, "<think>\nFirst", True),
        (QWEN3, {"content": "The sky", "reasoning_content": "hm"}, "<think>\nhm\n</think>\n\nThe sky", False),
        (THINK_PROMPT, {"content": "The sky"}, "<think>\n\n</think>\n\nThe sky", False),
        (THINK_PROMPT, {"content": "", "reasoning_content": "First"}, "<think>\nFirst", True),
    ],
)
def test_a_begun_message_is_left_open(source, final, ending, in_reasoning):
    messages = (USER, {"role": "assistant", **final})
    built, text = prompt(source, messages=messages, continue_final_message=True)
    assert text.endswith(ending)
    assert built.starts_in_reasoning is in_reasoning
    end = tokenizer().convert_tokens_to_ids("<|im_end|>")
    assert built.ids.count(end) == prompt(source)[0].ids.count(end)


def test_a_forced_call_begins_in_the_prompt_after_the_reasoning():
    tools = choose_tools(TOOLS, "required")
    built, text = prompt(THINK_PROMPT, tools=tools)  # a template without tools, which begins with reasoning
    assert text.endswith("</think>\n\n<tool_call>\n") and not built.starts_in_reasoning
    assert built.answer_prefix == "<tool_call>\n" and built.json_schema
    assert '"name": "draw"' in text
    native = prompt(QWEN_TOOLS, tools=tools)[0]
    assert native.call_format == built.call_format  # the prompt asks for the format of Qwen's template


def test_one_call_ends_the_answer_if_one_was_asked_for():
    several, one = (
        prompt(QWEN_TOOLS, tools=choose_tools(TOOLS, "auto", single_call=single))[0]
        for single in (False, True)
    )
    assert several.sampling.stop == () and one.sampling.stop == ("</tool_call>",)


def test_a_schema_excludes_tools_that_may_be_called_and_a_continued_message():
    task = ChatTask("m", (USER,), Sampling(), output_schema=check_schema({"type": "object"}, "x"))
    for more in (
        {"tools": choose_tools(TOOLS, "auto")},
        {"continue_final_message": True},
        {"continue_final_message": True, "messages": (USER, {"role": "assistant", "content": "a"})},
    ):
        with pytest.raises(InvalidRequestError):
            dataclasses.replace(task, **more)
