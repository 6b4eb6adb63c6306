"""The forms of records that people have, and that no field of them is lost in silence."""

from __future__ import annotations

import json

import pytest

from stillhouse.corpus import load_prompts, read_prompts, read_recipe_prompts
from stillhouse.corpus.prompts.columns import BadAnswerError, conversation
from stillhouse.errors import CorpusError
from stillhouse.recipe import Prompts, Recipe, Student, Teacher
from stillhouse.recipe.verifiers import Verifier

Q = {"role": "user", "content": "Why?"}
A = {"role": "assistant", "content": "Because."}
THOUGHT = A | {"reasoning_content": "Hm."}
SYSTEM = {"role": "system", "content": "You are a sailor."}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def messages(record, **options):
    return conversation(record, **options).messages


@pytest.mark.parametrize(
    ("record", "form"),
    [
        ({"instruction": "Why?", "input": "", "output": "Because."}, "Alpaca"),
        ({"Question": "Why?", "Response": "Because."}, "questions and answers"),
        ({"prompt": "Why?", "completion": "Because."}, "questions and answers"),
        ({"prompt": "Why?", "chosen": "Because.", "rejected": "No."}, "preference pairs"),
        ({"prompt": "Why?", "chosen": [Q, A], "rejected": [Q, A]}, "preference pairs"),
        ({"chosen": [Q, A], "rejected": [Q, A]}, "preference pairs"),
        (
            {
                "conversations": [{"from": "human", "value": "Why?"}],
                "chosen": {"from": "gpt", "value": "Because."},
            },
            "ShareGPT",
        ),
        ({"prompt": "Why?", "completion": "Because.", "label": True}, "questions and answers"),
        ({"messages": [Q], "response": "Because."}, "messages"),
        (
            {"messages": [Q, {"role": "assistant", "content": [{"type": "text", "text": "Because."}]}]},
            "messages",
        ),
        *(
            (
                {"conversations": [{"from": user, "value": "Why?"}, {"from": model, "value": "Because."}]},
                "ShareGPT",
            )
            for user, model in [("User", "chatgpt"), ("human", "bing"), ("user", "model")]
        ),
    ],
)
def test_finished_conversations(record, form):
    read = conversation(record)
    assert read.messages == [Q, A]
    assert read.form == form


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [Q, A | {"reasoning": "Hm."}]},
        {"messages": [Q, A | {"thinking": "Hm."}]},
        {"messages": [Q, A | {"reasoning": "Hm.", "reasoning_content": "Hm."}]},
        {"messages": [Q, A | {"content": [{"type": "thinking", "thinking": "Hm."}, "Because."]}]},
        {
            "messages": [
                Q,
                A
                | {
                    "content": [
                        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
                        {"type": "text", "text": "Because."},
                    ]
                },
            ]
        },
        {"question": "Why?", "response": "Because.", "reasoning": "Hm."},
        *(
            {"prompt": "Why?", "completion": f"{start}\nHm.\n{end}\n\nBecause."}
            for start, end in [
                ("<think>", "</think>"),
                ("<thinking>", "</thinking>"),
                ("[THINK]", "[/THINK]"),
                ("<seed:think>", "</seed:think>"),
                ("<|begin_of_thought|>", "<|end_of_thought|>"),
                ("", "</think>"),
            ]
        ),
    ],
)
def test_reasoning_by_any_of_its_names(record):
    assert messages(record) == [Q, THOUGHT]


@pytest.mark.parametrize(
    "answer",
    [
        "Close the block with </think> and then write.",
        "The mark is `</think>`.",
        "```\n<p>\n</think>\n```",
        "<thinking> is never closed here",
    ],
)
def test_an_answer_that_only_speaks_of_the_mark_stays_whole(answer):
    assert messages({"prompt": "Why?", "completion": answer})[1] == {"role": "assistant", "content": answer}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"conversations": [{"from": "human", "value": "Why?"}], "system": SYSTEM["content"]}, [SYSTEM, Q]),
        ({"system_prompt": SYSTEM["content"], "question": "Why?", "response": "Because."}, [SYSTEM, Q, A]),
        (
            {
                "instruction": "Why?",
                "output": "Because.",
                "system": SYSTEM["content"],
                "history": [["Ship?", "Ahoy."]],
            },
            [SYSTEM, {"role": "user", "content": "Ship?"}, {"role": "assistant", "content": "Ahoy."}, Q, A],
        ),
        ({"instruction": "Why?", "context": "It rains."}, [{"role": "user", "content": "Why?\n\nIt rains."}]),
    ],
)
def test_system_prompts_and_history_join_the_conversation(record, expected):
    assert messages(record) == expected


def test_a_question_with_a_gold_answer_is_asked_unless_the_recipe_says_otherwise():
    record = {"question": "Why?", "answer": "Because."}
    assert messages(record) == [Q]
    assert conversation(record).tags == {"answer": "Because."}
    assert messages(record, answer="answer") == [Q, A]


def test_a_column_that_a_verifier_reads_is_not_the_answer():
    record = {"instruction": "Why?", "output": "Because."}
    assert messages(record, gold=["output"]) == [Q]
    assert conversation(record, gold=["output"]).tags == {"output": "Because."}


@pytest.mark.parametrize("record", [{"messages": [Q, A]}, {"instruction": "Why?", "output": "Because."}])
def test_answers_that_are_not_wanted_are_asked_again(record):
    assert messages(record, answer="none") == [Q]


def test_weight_0_is_context_and_what_follows_the_last_learned_answer_is_left_out():
    wrong, right = A | {"weight": 0}, {"role": "assistant", "content": "9."}
    assert messages({"messages": [Q, A | {"weight": 0}, Q, right | {"weight": 1}]}) == [Q, wrong, Q, right]
    assert messages({"messages": [Q, right, Q, A | {"train": False}]}) == [Q, right]
    assert messages({"messages": [Q, A | {"weight": None}]}) == [Q, A]
    assert not conversation({"messages": [Q | {"weight": 1}, wrong, Q, right | {"weight": 1}]}).unused
    assert messages({"messages": [Q, A | {"content": " "}, Q, right]})[1]["weight"] == 0


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"weight": 0.5}, "weight 0.5; only 0 .* and 1"),
        ({"weight": 0}, "no answer is learned"),
        ({"weight": 1, "train": False}, "contradicts itself"),
        ({"train_detail": [{"begin_offset": 0}]}, "train_detail, which is not supported"),
        ({"loss_mask": [0, 1]}, "loss_mask, which is not supported"),
        ({"reasoning": "Hm.", "thinking": "Well."}, "different reasoning in reasoning and thinking"),
        ({"images": ["a.png"]}, "has images, which are not supported"),
        ({"audio": {"id": 1}}, "has audio, which are not supported"),
        ({"content": [{"type": "image_url"}]}, "found a part .*image_url"),
        ({"content": None, "refusal": "I cannot."}, "is a refusal"),
        (
            {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "the tool call of",
        ),
    ],
)
def test_fields_that_cannot_be_followed_refuse_the_record(extra, message):
    with pytest.raises(CorpusError, match=message):
        conversation({"messages": [Q, A | extra]})


def test_a_record_with_images_is_refused():
    with pytest.raises(CorpusError, match="has images, which are not supported"):
        conversation({"messages": [Q, A], "images": [{"bytes": "x"}]})
    assert messages({"messages": [Q, A], "images": []}) == [Q, A]


def test_only_the_assistants_turns_can_be_learned():
    with pytest.raises(CorpusError, match="only the assistant's turns"):
        conversation({"messages": [Q | {"train": True}, A]})


@pytest.mark.parametrize("label", [{"label": False}, {"kto_tag": False}, {"label": "False"}])
def test_an_answer_labelled_as_bad_is_not_learned(label):
    with pytest.raises(BadAnswerError, match="bad answer"):
        conversation({"prompt": "Why?", "completion": "Because."} | label)


def test_a_label_of_a_question_is_a_tag():
    assert conversation({"text": "Why?", "label": False}).tags == {"label": False}


@pytest.mark.parametrize(
    "calling",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "content": "", "tool_calls": json.dumps([CALL])},
        {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "weather", "arguments": '{"city": "Rome"}'}}],
        },
        {"role": "assistant", "function_call": {"name": "weather", "arguments": '{"city": "Rome"}'}},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Rome"}}'},
    ],
)
def test_tool_calls_in_every_form(calling):
    result = {"role": "tool", "content": "Sunny."}
    tools = [{"name": "weather", "parameters": {"type": "object"}}]
    read = conversation({"messages": [Q, calling, result, A], "tools": json.dumps(tools)})
    assert read.messages == [Q, {"role": "assistant", "content": "", "tool_calls": [CALL]}, result, A]
    assert read.tools == [{"type": "function", "function": tools[0]}]


def test_a_question_with_tools_is_refused():
    with pytest.raises(CorpusError, match="asks with tools"):
        conversation({"messages": [Q], "tools": [CALL]})


def test_columns_and_fields_that_are_not_used_are_named_with_counts(tmp_path, capsys):
    record = {
        "messages": [Q | {"name": "Bob"}, A | {"model": "m"}],
        "images": [],
        "scores": [1],
        "rejected": [A],
    }
    prompt_set = read_prompts(write(tmp_path / "p.jsonl", record, {"prompt": "Two?", "scores": [2], "x": 7}))
    prompt_set.report()
    assert prompt_set.unused == {"scores": 2, "messages.name": 1, "messages.model": 1, "rejected": 1}
    assert prompt_set.tags == {"x": 1}  # the number of records
    assert prompt_set.facts["read_as"] == {
        "finished conversations (messages: messages)": 1,
        "prompts (questions: prompt)": 1,
    }
    said = " ".join(capsys.readouterr().err.split())
    assert "read as 1 finished conversation (messages: messages), 1 prompt (questions: prompt)" in said
    assert "kept as tags, which are not learned: x (1)" in said
    assert "not used: scores (2), messages.model (1), messages.name (1), rejected (1)" in said


def test_a_blank_column_is_not_named_as_a_tag(tmp_path):
    lines = [{"instruction": f"Say {n}", "input": blank, "output": "a"} for n, blank in enumerate(("", "  "))]
    assert read_prompts(write(tmp_path / "p.jsonl", *lines)).tags == {}


def test_a_missing_value_is_no_tag_and_tags_are_json(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "Why?", "a": NaN, "b": -Infinity, "c": 1.5, "completion": NaN}\n')
    (prompt,) = load_prompts(str(path))
    assert prompt.tags == {"c": 1.5}
    assert not prompt.is_finished


def test_one_bad_record_is_rejected_with_id_line_and_reason(tmp_path, capsys):
    good = [{"messages": [Q | {"content": f"Why {n}?"}, A]} for n in range(63)]
    bad = {"id": "row-7", "messages": [Q, A, SYSTEM]}
    path = write(tmp_path / "p.jsonl", *good, bad)
    prompt_set = read_prompts(path)
    (rejected,) = prompt_set.rejected
    assert len(prompt_set.prompts) == 63
    assert (rejected.where, rejected.reason) == (f"{path}:64", "unreadable record")
    assert (
        rejected.detail == f"{path}:64 (id 'row-7'): messages ends with a system prompt, so it asks nothing"
    )
    prompt_set.report()
    assert "1 rejected: unreadable record" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(CorpusError, match=r"p\.jsonl:64 \(id 'row-7'\): messages ends with a system prompt"):
        read_prompts(path, tolerated=0.01)


def test_answers_labelled_as_bad_are_counted_and_never_too_many(tmp_path):
    records = [{"prompt": f"Why {n}?", "completion": "So.", "label": n == 0} for n in range(5)]
    prompt_set = read_prompts(write(tmp_path / "p.jsonl", *records), tolerated=0)
    assert len(prompt_set.prompts) == 1
    assert prompt_set.facts["rejected_records"] == {"labelled as a bad answer": 4}


def test_a_recipe_says_which_answers_are_gold(tmp_path):
    path = write(
        tmp_path / "p.jsonl", {"instruction": "Why?", "input": "", "output": "Because.", "answer": "42"}
    )

    def read(*verifiers, **prompts):
        recipe = Recipe(
            name="r",
            teacher=Teacher(model="embedded:smollm2"),
            prompts=Prompts(source=path, **prompts),
            student=Student(init="prune", layers=2),
            verifiers=verifiers,
        )
        (prompt,) = read_recipe_prompts(recipe).prompts
        return prompt.messages

    assert read() == [Q, A]
    assert read(Verifier(kind="exact", answer="output")) == [Q]
    assert read(answer="none") == [Q]
    assert read(answer="answer") == [Q, A | {"content": "42"}]


def test_an_answer_column_that_no_record_has_is_an_error(tmp_path):
    with pytest.raises(CorpusError, match="no record has a column 'reply'"):
        read_prompts(write(tmp_path / "p.jsonl", {"prompt": "Why?"}), answer="reply")
