"""Conversations that the student's template refuses are told before the teacher is paid."""

from __future__ import annotations

import json
import shutil

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from stillhouse.corpus import read_recipe_prompts
from stillhouse.errors import ModelError
from stillhouse.plan.rendering import check_rendering
from stillhouse.recipe import Prompts, Recipe, Student, Teacher

CHATML = """{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
QUESTION, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    directory = tmp_path_factory.mktemp("student")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(directory)
    LlamaConfig(vocab_size=300).save_pretrained(directory)
    return str(directory)


def checked(tmp_path, student, *records, **prompts):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    recipe = Recipe(
        name="r",
        teacher=Teacher(model="api:http://127.0.0.1:1/v1#m"),
        prompts=Prompts(source=str(path), **prompts),
        student=Student(model=student),
    )
    return check_rendering(recipe, read_recipe_prompts(recipe).prompts)


def numbered(count):
    return [{"messages": [{"role": "user", "content": f"Why {n}?"}, ANSWER]} for n in range(count)]


def test_a_refused_conversation_is_named_with_its_line(tmp_path, student, capsys):
    refused = {"messages": [{"role": "system", "content": "Be brief."}, QUESTION, ANSWER]}
    (place,) = checked(tmp_path, student, *numbered(40), refused)
    assert place.startswith(f"{tmp_path / 'p.jsonl'}:41 (prompt ")
    assert "System role not supported" in place
    said = " ".join(capsys.readouterr().err.split())
    assert "cannot render 1 of 41 conversations; they will be rejected" in said
    assert "p.jsonl:41" in said


def test_too_many_refused_are_an_error_for_questions_as_well(tmp_path, student):
    asked = {"messages": [{"role": "system", "content": "Be brief."}, QUESTION]}
    with pytest.raises(ModelError, match=r"cannot render 1 of 3 conversations; the first: .*p\.jsonl:1 "):
        checked(tmp_path, student, asked, *numbered(2))
    assert len(checked(tmp_path, student, asked, *numbered(2), tolerated_rejects=0.5)) == 1


def test_an_answer_before_any_question_is_context(tmp_path, student):
    greeted = {"conversations": [{"from": "gpt", "value": "How can I help?"}, QUESTION, ANSWER]}
    assert checked(tmp_path, student, greeted) == []


def test_tool_calls_that_the_template_does_not_know_are_refused_by_name(tmp_path, student):
    call = {"function": {"name": "weather", "arguments": "{}"}}
    with pytest.raises(ModelError, match="leaves out the call of 'weather'"):
        checked(
            tmp_path,
            student,
            {"messages": [QUESTION, {"role": "assistant", "content": None, "tool_calls": [call]}]},
        )


@pytest.mark.parametrize(("source", "warned"), [(CHATML, False), (CHATML.replace("<|im_end|>", ""), True)])
def test_a_template_without_an_end_mark_is_warned_about(tmp_path, student, capsys, source, warned):
    directory = shutil.copytree(student, tmp_path / "student")
    (directory / "chat_template.jinja").write_text(source)
    checked(tmp_path, str(directory), *numbered(2))
    said = " ".join(capsys.readouterr().err.split())
    assert ("ends an answer with no token of its own" in said) is warned
