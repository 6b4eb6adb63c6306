"""Chat templates in the styles of well-known models, short enough to read, and a tokenizer for them all."""

from __future__ import annotations

import copy
import functools

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = """\
{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)

LLAMA2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)

QWEN3 = """\
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set content, thought = message.content, '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""

R1 = """\
{{ bos_token }}{% for message in messages %}
{%- if message.role == 'user' %}{{ '<｜User｜>' + message.content }}{% endif %}
{%- if message.role == 'assistant' %}
{%- set content = message.content.split('</think>')[-1] %}
{{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}
{%- endif %}{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"""

GPT_OSS = """\
{{- '<|start|>system<|message|>Reasoning: medium<|end|>' }}{% for message in messages %}
{%- if message.role == 'assistant' %}
    {%- if message.tool_calls %}
        {{- '<|start|>assistant to=functions.' + message.tool_calls[0].function.name }}
        {{- '<|channel|>commentary json<|message|>' }}
        {{- message.tool_calls[0].function.arguments | tojson + '<|call|>' }}
    {%- elif loop.last and not add_generation_prompt %}
        {%- if 'thinking' in message %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}
        {%- endif %}
        {{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|return|>' }}
    {%- else %}{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}
    {%- endif %}
{%- elif message.role == 'tool' %}
    {%- if not loop.previtem.tool_calls %}{{- raise_exception('no call before') }}{% endif %}
    {{- '<|start|>functions to=assistant<|message|>' + message.content | tojson + '<|end|>' }}
{%- else %}{{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{- '<|start|>assistant' }}{% endif %}"""

THINK_PROMPT = """\
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' and loop.last %}
    {{- '<think>\\n' + message.reasoning_content | default('') + '\\n</think>\\n\\n' + message.content }}
{%- else %}{{- message.content }}{% endif %}{{- '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"""

QWEN_TOOLS = """\
{%- if tools %}{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{% endif %}
{{- "# Tools\\n\\n<tools>" }}{% for tool in tools %}{{- '\\n' + tool | tojson }}{% endfor %}
{{- '\\n</tools>\\n\\nCall one as <tool_call>{"name": …, "arguments": …}</tool_call>.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'system' and loop.first and tools %}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' + message.content }}
        {%- for call in message.tool_calls or [] %}
            {%- if not loop.first or message.content %}{{- '\\n' }}{% endif %}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA3_TOOLS = """\
{{- bos_token }}{% for message in messages %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
{%- if loop.first and tools %}
    {{- 'Functions:\\n' }}{% for tool in tools %}{{- tool | tojson }}{% endfor %}
{%- endif %}
{%- if message.tool_calls %}
    {%- if message.tool_calls | length != 1 %}{{- raise_exception('one call at a time') }}{% endif %}
    {%- set call = message.tool_calls[0].function %}
    {{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + '}<|eot_id|>' }}
{%- else %}{{- message.content | trim + '<|eot_id|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

MISTRAL_TOOLS = """\
{%- for message in messages %}
{%- if message.role == 'user' %}
    {%- if tools %}{{- '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
    {{- '[INST]' + message.content + '[/INST]' }}
{%- elif message.tool_calls %}
    {{- '[TOOL_CALLS] [' }}{% for call in message.tool_calls %}{{- call.function | tojson }}{% endfor %}
    {{- ']</s>' }}
{%- else %}{{- message.content + '</s>' }}{% endif %}
{%- endfor %}"""

MARKED = """\
{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['role'] == 'assistant' %}
{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}
{% else %}{{ message['content'] }}<|im_end|>{% endif %}

{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

GLM = """\
[gMASK]<sop>
{%- for m in messages %}
{%- if m.role == 'assistant' %}{{ '<|assistant|>\\n<think></think>\\n' + m.content }}
{%- elif m.role == 'tool' %}{{ '<|observation|>\\n' + m.content }}
{%- else %}{{ '<|' + m.role + '|>\\n' + m.content }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
"""As GLM 4.5's: nothing follows a last answer, and the next role's mark follows any other."""
GLM_MARKED = GLM.replace(
    "{{ '<|assistant|>\\n<think></think>\\n' + m.content }}",
    "{{ '<|assistant|>' }}{% generation %}{{ '\\n<think></think>\\n' + m.content }}{% endgeneration %}",
)
COMMAND_R = """\
{%- for m in messages %}{{ '<|START_OF_TURN_TOKEN|>' + m.role }}
{%- if m.role == 'assistant' %}{{ '<|START_RESPONSE|>' + m.content + '<|END_RESPONSE|>' }}
{%- else %}{{ m.content }}{% endif %}{{ '<|END_OF_TURN_TOKEN|>' }}
{%- endfor %}{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|>assistant<|START_RESPONSE|>{% endif %}"""
"""As Command R7B's: one mark ends the response, another the turn."""
SPECIAL = [
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", "<｜end▁of▁sentence｜>", "<|start|>", "<|channel|>", "<|message|>",
    "<|end|>", "<|return|>", "<|call|>",
]  # fmt: skip
NOT_SPECIAL = ["<think>", "</think>", "<｜User｜>", "<｜Assistant｜>"]
MERGES = ["Ċ Ċ", "Ġ Ġ", "h e", "t he", "Ġ t", "Ġt he", "Ġ a", "o u", "< |", "| >", "s t"]


@functools.cache
def _tokenizer() -> PreTrainedTokenizerFast:
    merges = [tuple(merge.split()) for merge in MERGES]
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(merge) for merge in merges)]
    backend = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    added = [AddedToken(mark, special=True, normalized=False) for mark in SPECIAL]
    backend.add_tokens([*added, *(AddedToken(mark, special=False, normalized=False) for mark in NOT_SPECIAL)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges (two newlines are one token) and every marker used here."""
    return _tokenizer()


TURN_MARKS = [
    "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>", "<|system|>",
    "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>",
]  # fmt: skip


def tokenizer_with_turn_marks() -> PreTrainedTokenizerFast:
    """The tokenizer with the marks of GLM's and Command R's templates too."""
    tok = copy.deepcopy(tokenizer())
    tok.backend_tokenizer.add_tokens(
        [AddedToken(mark, special=True, normalized=False) for mark in TURN_MARKS]
    )
    return tok
