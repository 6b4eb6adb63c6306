"""What is learned where a template's conversations differ from what a model generates.

The oracle is a `{% generation %}` version of each template, written for the test, rendered by transformers.
"""

from __future__ import annotations

import pytest
from chat_templates import CHATML, GPT_OSS, LLAMA2, LLAMA3, QWEN3, QWEN_TOOLS, R1, THINK_PROMPT, tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from stillhouse.errors import ModelError
from stillhouse.models import ChatTemplate, PromptEncoder

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
# As the templates, but with what the model writes after the prompt, marked.
R1_MARKED = R1.replace(
    "{{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}",
    "{%- if loop.last %}{{- '<｜Assistant｜><think>\\n' }}{% generation %}"
    "{{- message.reasoning_content | default('') + '\\n</think>\\n\\n' + content + '<｜end▁of▁sentence｜>' }}"
    "{% endgeneration %}{% else %}{{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{% endif %}",
)
THINK_PROMPT_MARKED = THINK_PROMPT.replace(
    "{{- '<think>\\n' + message.reasoning_content | default('') + '\\n</think>\\n\\n' + message.content }}",
    "{{- '<think>\\n' }}{% generation %}{{- message.reasoning_content | default('') + '\\n</think>\\n\\n' }}"
    "{{- message.content + '<|im_end|>' }}{% endgeneration %}{{- '\\n' }}",
).replace("{% endif %}{{- '<|im_end|>\\n' }}", "{{- '<|im_end|>\\n' }}{% endif %}")
GPT_OSS_MARKED = (
    GPT_OSS.replace("'thinking' in message", "message.reasoning_content")
    .replace("message.thinking", "message.reasoning_content")
    .replace(
        "{%- if message.reasoning_content %}\n            {{- '<|start|>assistant<",
        "{{- '<|start|>assistant' }}{% generation %}{%- if message.reasoning_content %}\n            {{- '<",
    )
    .replace(
        "{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|return|>' }}",
        "{%- if message.reasoning_content %}{{- '<|start|>assistant' }}{% endif %}"
        "{{- '<|channel|>final<|message|>' + message.content + '<|return|>' }}{% endgeneration %}",
    )
    .replace(
        "{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}",
        "{{- '<|start|>assistant' }}{% generation %}{{- '<|channel|>final<|message|>' + message.content }}"
        "{% endgeneration %}{{- '<|end|>' }}",
    )
)


def conversation(*contents, thoughts=()):
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    for index, text in thoughts:
        messages[index]["reasoning_content"] = text
    return messages


def by_transformers(source, messages):
    (text,), (spans,) = render_jinja_template(
        conversations=[messages], chat_template=source, return_assistant_tokens_mask=True, **TOKENS
    )
    return text, [text[slice(*span)] for span in spans]


def runs(ids, mask):
    """The whole text, and the learned runs of tokens as text."""
    texts, run = [], []
    for token, learned in [*zip(ids, mask, strict=True), (0, False)]:
        if learned:
            run.append(token)
        elif run:
            texts.append(tokenizer().decode(run, skip_special_tokens=False))
            run = []
    return tokenizer().decode(ids, skip_special_tokens=False), texts


def learned(source, messages, **options):
    return runs(*ChatTemplate(source, TOKENS).encode(tokenizer(), messages, **options))


@pytest.mark.parametrize(
    ("source", "marked"),
    [(R1, R1_MARKED), (THINK_PROMPT, THINK_PROMPT_MARKED), (GPT_OSS, GPT_OSS_MARKED)],
    ids=["r1", "think-prompt", "gpt-oss"],
)
@pytest.mark.parametrize(
    "messages",
    [
        conversation("Why?", "Because."),
        conversation("Why?", "Because.", thoughts=[(1, "Hm.")]),
        conversation("Why?", "Because.", "Sure?", "Yes."),
        conversation("Why?", "Because.", "Sure?", "Yes.", thoughts=[(3, "Hm.\n\nWell.")]),
    ],
    ids=["single", "thoughts", "two", "two-thoughts"],
)
def test_the_learned_part_is_what_the_model_writes_after_the_prompt(source, marked, messages):
    assert learned(source, messages) == by_transformers(marked, messages)


@pytest.mark.parametrize("source", [R1, THINK_PROMPT, GPT_OSS, QWEN3, CHATML], ids=str.__len__)
def test_the_learned_part_begins_with_the_prompts_last_token(source):
    template = ChatTemplate(source, TOKENS)
    messages = conversation("Why?", "Because.", "Sure?", "Yes.", thoughts=[(3, "Hm.")])
    ids, turns = template.encode_turns(tokenizer(), messages)
    prompt = template.encode_prompt(tokenizer(), messages[:-1])
    assert ids[: len(prompt)] == prompt
    assert turns[3].start == len(prompt)


def test_an_earlier_turn_that_cannot_be_told_apart_is_context():
    messages = conversation("one", "first", "two", "second", thoughts=[(1, "T1"), (3, "T2")])
    assert learned(THINK_PROMPT, messages)[1] == ["T2\n</think>\n\nsecond<|im_end|>"]


def test_a_template_that_needs_a_question_is_never_asked_without_one():
    """As Qwen 3.5's; a system prompt alone is no conversation for it."""
    needs_a_question = (
        "{% if not messages | selectattr('role', 'equalto', 'user') | list %}"
        "{{ raise_exception('No user query found in messages.') }}{% endif %}"
    )
    messages = [{"role": "system", "content": "Be brief."}, *conversation("Sing.", "La.")]
    assert learned(needs_a_question + CHATML, messages) == learned(CHATML, messages)
    assert learned(CHATML, messages)[1] == ["La.<|im_end|>"]


def test_an_answer_before_any_question_is_context():
    messages = [{"role": "assistant", "content": "How can I help?"}, *conversation("Sing.", "La.")]
    needs_a_message = "{{ messages[0].role[:0] }}" + CHATML
    assert learned(needs_a_message, messages)[1] == ["La.<|im_end|>"]


@pytest.mark.parametrize("source", [CHATML, LLAMA3, QWEN3], ids=["chatml", "llama3", "qwen3"])
def test_a_turn_of_weight_0_is_context(source):
    messages = conversation("2+7?", "Nonsense.", "No.", "9.")
    whole, both = learned(source, messages)
    messages[1]["weight"] = 0
    text, only = learned(source, messages)
    assert text == whole
    assert only == both[1:]


def test_weights_hold_where_the_template_marks_its_answers():
    marked = CHATML.replace(
        "{{ message['content'] }}<|im_end|>",
        "{% if message.role == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>"
        "{% endgeneration %}{% else %}{{ message['content'] }}<|im_end|>{% endif %}\n",
    )
    messages = conversation("2+7?", "Nonsense.", "No.", "9.")
    messages[1]["weight"] = 0
    assert learned(marked, messages)[1] == ["9.<|im_end|>"]


def test_reasoning_that_the_prompt_rules_out_is_refused():
    closed = THINK_PROMPT.replace(
        "'<|im_start|>assistant\\n<think>\\n'", "'<|im_start|>assistant\\n<think></think>'"
    )
    with pytest.raises(ModelError, match="closes the reasoning") as caught:
        learned(closed, conversation("Why?", "Because.", thoughts=[(1, "Hm.")]))
    assert "filter.thoughts" in (caught.value.hint or "")


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALLING = [
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "Sunny."},
    {"role": "assistant", "content": "No."},
]


@pytest.mark.parametrize(
    ("source", "call", "answer"),
    [
        (
            QWEN_TOOLS,
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>',
            "No.<|im_end|>",
        ),
        (
            GPT_OSS,
            ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Rome"}<|call|>',
            "<|channel|>final<|message|>No.<|return|>",
        ),
    ],
    ids=["qwen", "gpt-oss"],
)
def test_calls_are_learned_where_the_template_knows_them(source, call, answer):
    tools = TOOLS if source == QWEN_TOOLS else None
    assert learned(source, CALLING, tools=tools)[1] == [call, answer]
    assert learned(source, CALLING[:2], tools=tools)[1] == [call]


def test_arguments_are_text_where_the_template_needs_text():
    source = QWEN_TOOLS.replace("call.function.arguments | tojson +", "call.function.arguments +")
    assert learned(source, CALLING)[1][0].startswith(
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}'
    )


@pytest.mark.parametrize(
    ("messages", "tools", "message"),
    [
        (CALLING, TOOLS, "leaves out the tool 'weather'"),
        (CALLING, None, "leaves out the call of 'weather'"),
        ([*conversation("Rain?"), CALLING[2], CALLING[3]], None, "leaves out the result"),
    ],
)
def test_a_template_without_tools_refuses_calls_by_name(messages, tools, message):
    source = LLAMA2 if "result" in message else CHATML
    with pytest.raises(ModelError, match=message) as caught:
        learned(source, messages, tools=tools)
    assert "tool" in (caught.value.hint or "")


@pytest.mark.parametrize("source", [GPT_OSS, CHATML, QWEN3, R1], ids=["gpt-oss", "chatml", "qwen3", "r1"])
@pytest.mark.parametrize("thoughts", ["Hm.\n\nWell.", None])
def test_a_generated_answer_is_read_as_it_is_learned(source, thoughts):
    template = ChatTemplate(source, TOKENS)
    encoder = PromptEncoder(tokenizer(), template, None, seed=0)
    messages = conversation("Why?", "Because.", thoughts=[(1, thoughts)] if thoughts else [])
    ids, turns = template.encode_turns(tokenizer(), messages)
    answer = [ids[t] for t in turns[1]]
    assert encoder.read_answer(ids[: turns[1].start], answer, ()) == ("Because.", thoughts, False)


def test_reasoning_of_gpt_oss_that_was_cut_off_has_no_answer():
    encoder = PromptEncoder(tokenizer(), ChatTemplate(GPT_OSS, TOKENS), None, seed=0)
    cut = tokenizer().encode("<|channel|>analysis<|message|>Hm", add_special_tokens=False)
    assert encoder.read_answer([], cut, ()) == ("", "Hm", False)
