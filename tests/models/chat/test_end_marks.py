"""Every learned turn ends with the end marks of its template, also where another turn begins with them."""

from __future__ import annotations

import pytest
from chat_templates import CHATML, COMMAND_R, GLM, GLM_MARKED, LLAMA3, R1, tokenizer_with_turn_marks

from stillhouse.models import ChatTemplate

BARE = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
STYLES = {
    "glm": (GLM, ("<|user|>",)),
    "glm marked": (GLM_MARKED, ("<|user|>",)),
    "command r": (COMMAND_R, ("<|END_RESPONSE|>", "<|END_OF_TURN_TOKEN|>")),
    "chatml": (CHATML, ("<|im_end|>",)),
    "llama3": (LLAMA3, ("<|eot_id|>",)),
    "r1": (R1, ("<｜end▁of▁sentence｜>",)),
    "bare": (BARE, ()),
}


def learned(template, messages):
    """The text of each learned turn."""
    tok = tokenizer_with_turn_marks()
    ids, mask = template.encode(tok, messages)
    texts, previous = [], False
    for token, written in zip(ids, mask, strict=True):
        if written:
            texts += [] if previous else [[]]
            texts[-1].append(token)
        previous = written
    return [tok.decode(turn) for turn in texts]


@pytest.mark.parametrize("style", STYLES)
def test_generation_ends_at_all_marks_of_the_template(style):
    source, marks = STYLES[style]
    template, tok = ChatTemplate(source, {"bos_token": ""}), tokenizer_with_turn_marks()
    assert template.end_marks(tok) == marks
    assert template.end_token_ids(tok) == {tok.eos_token_id, *map(tok.convert_tokens_to_ids, marks)}


@pytest.mark.parametrize("style", ["glm", "glm marked", "command r"])
def test_every_learned_turn_ends_with_the_marks(style):
    source, marks = STYLES[style]
    messages = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Because."},
        {"role": "user", "content": "So?"},
        {"role": "assistant", "content": "Then."},
    ]
    start = "\n<think></think>\n" if "glm" in style else ""
    end = "".join(marks)
    assert learned(ChatTemplate(source), messages[:2]) == [f"{start}Because.{end}"]
    assert learned(ChatTemplate(source), messages) == [f"{start}Because.{end}", f"{start}Then.{end}"]


def test_a_call_ends_with_the_mark_of_the_tools_turn():
    messages = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "look"},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "Two."},
    ]
    turns = learned(ChatTemplate(GLM), messages)
    assert [turn.rpartition("\n")[2] for turn in turns] == ["look<|observation|>", "Two.<|user|>"]


def test_a_prompt_does_not_contain_the_mark_of_an_answer_to_come():
    tok = tokenizer_with_turn_marks()
    prompt = ChatTemplate(GLM).encode_prompt(tok, [{"role": "user", "content": "Why?"}])
    assert tok.decode(prompt) == "[gMASK]<sop><|user|>\nWhy?<|assistant|>"
