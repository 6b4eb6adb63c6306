"""Prompts from every kind of file, and what is said about a bad one."""

from __future__ import annotations

import csv
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from stillhouse.corpus import load_prompts
from stillhouse.errors import CorpusError, EmptyCorpusError
from stillhouse.hashing import sha256_json
from stillhouse.models import split_reasoning

USER = {"role": "user", "content": "Why is the sky blue?"}


def jsonl(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def only(source, **options):
    (prompt,) = load_prompts(source, **options)
    return prompt


@pytest.mark.parametrize(
    ("record", "messages", "tags"),
    [
        ({"messages": [USER]}, [USER], {}),
        ({"prompt": USER["content"], "level": 3}, [USER], {"level": 3}),
        ({"prompt": [USER]}, [USER], {}),
        ({"question": USER["content"], "answer": "Rayleigh"}, [USER], {"answer": "Rayleigh"}),
        ({"instruction": USER["content"], "input": ""}, [USER], {"input": ""}),
        ({"text": USER["content"], "extra": [1, 2]}, [USER], {}),
        (
            {"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"}]},
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
            {},
        ),
    ],
)
def test_columns(tmp_path, record, messages, tags):
    prompt = only(jsonl(tmp_path / "p.jsonl", record))
    assert (prompt.messages, prompt.tags, prompt.is_finished) == (messages, tags, False)


@pytest.mark.parametrize(
    ("record", "answer"),
    [
        ({"prompt": "Q", "completion": "A"}, {"role": "assistant", "content": "A"}),
        (
            {
                "prompt": [{"role": "user", "content": "Q"}],
                "completion": [{"role": "assistant", "content": "A"}],
            },
            {"role": "assistant", "content": "A"},
        ),
        (
            {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
            {"role": "assistant", "content": "A"},
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "Q"},
                    {"role": "assistant", "content": "A", "reasoning_content": "hm"},
                ]
            },
            {"role": "assistant", "content": "A", "reasoning_content": "hm"},
        ),
        (
            {"prompt": "Q", "completion": "<think>\nhm\n</think>\n\nA"},
            {"role": "assistant", "content": "A", "reasoning_content": "hm"},
        ),
    ],
)
def test_finished_exchanges(tmp_path, record, answer):
    prompt = only(jsonl(tmp_path / "p.jsonl", record))
    assert prompt.is_finished
    assert prompt.messages == [{"role": "user", "content": "Q"}, answer]


def test_all_kinds_of_file_give_the_same_prompts(tmp_path):
    texts = ["First, with a comma", 'Second "quoted"', "Drittens: ä 中"]
    records = [{"prompt": text} for text in texts]
    (tmp_path / "p.json").write_text(json.dumps(records))
    (tmp_path / "p.txt").write_text("\n\n".join(texts) + "\n")
    quoted = [text.replace('"', '""') for text in texts]
    (tmp_path / "p.csv").write_text("prompt\n" + "".join(f'"{text}"\n' for text in quoted))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "p.parquet")
    jsonl(tmp_path / "p.jsonl", *records)
    for kind in ("json", "txt", "csv", "parquet", "jsonl"):
        prompts = load_prompts(str(tmp_path / f"p.{kind}"))
        assert [prompt.messages[0]["content"] for prompt in prompts] == texts
        assert [prompt.id for prompt in prompts] == [p.id for p in load_prompts(str(tmp_path / "p.jsonl"))]


def test_parquet_with_nested_messages(tmp_path):
    pq.write_table(
        pa.Table.from_pylist([{"messages": [USER], "prompt": None}, {"messages": None, "prompt": "P"}]),
        tmp_path / "p.parquet",
    )
    prompts = load_prompts(str(tmp_path / "p.parquet"))
    assert [prompt.messages for prompt in prompts] == [[USER], [{"role": "user", "content": "P"}]]


def test_parquet_with_every_arrow_type_of_text_and_list(tmp_path):
    """As `datasets` and pandas write them: long lists, dictionaries, and calls that are null."""
    turns = [USER | {"tool_calls": None}, {"role": "assistant", "content": "Rayleigh.", "tool_calls": None}]
    calls = pa.list_(pa.struct([("name", pa.string())]))
    turn = pa.struct([("role", pa.string()), ("content", pa.large_string()), ("tool_calls", calls)])
    columns = {
        "messages": pa.array([turns], pa.large_list(turn)),
        "source": pa.array(["web"]).dictionary_encode(),
    }
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    prompt = only(str(tmp_path / "p.parquet"))
    assert prompt.messages == [USER, {"role": "assistant", "content": "Rayleigh."}]
    assert prompt.tags == {"source": "web"}


def test_byte_order_mark_and_blank_lines_are_no_matter(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\n{"prompt": "a"}\n\n{"prompt": "b"}')
    assert len(load_prompts(str(path))) == 2


def test_only_a_newline_ends_a_line_of_json(tmp_path):
    """JSON allows the separators at which Python's `splitlines` also cuts; a line may be megabytes long."""
    texts = ["a\u2028b\u2029c\x85d", "x" * 6_000_000]
    lines = [json.dumps({"prompt": text}, ensure_ascii=False) for text in texts]
    (tmp_path / "p.jsonl").write_bytes("\r\n".join(lines).encode())
    prompts = load_prompts(str(tmp_path / "p.jsonl"))
    assert [prompt.messages[0]["content"] for prompt in prompts] == texts


def test_named_column_wins(tmp_path):
    path = jsonl(tmp_path / "p.jsonl", {"prompt": "no", "task": "yes"})
    prompt = only(path, column="task")
    assert prompt.messages[0]["content"] == "yes"
    assert prompt.tags == {"prompt": "no"}
    with pytest.raises(CorpusError, match=r"p\.jsonl:1: there is no column 'taks'; columns: prompt, task"):
        load_prompts(path, column="taks")


def test_exact_duplicates_are_dropped_and_ids_are_of_the_messages(tmp_path):
    prompts = load_prompts(
        jsonl(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "a", "x": 1}, {"text": "b"})
    )
    assert [prompt.messages[0]["content"] for prompt in prompts] == ["a", "b"]
    # sha256 of [{"content":"a","role":"user"}], by coreutils
    assert prompts[0].id == "5168bd634e48454dad7ce9e90c521bba"


def test_limit_draws_the_same_prompts_whatever_their_order(tmp_path):
    records = [{"prompt": f"prompt {number}"} for number in range(200)]
    shuffled = random.Random(5).sample(records, len(records))
    drawn = load_prompts(jsonl(tmp_path / "a.jsonl", *records), limit=20, seed=3)
    again = load_prompts(jsonl(tmp_path / "b.jsonl", *shuffled), limit=20, seed=3)
    other = load_prompts(str(tmp_path / "a.jsonl"), limit=20, seed=4)
    more = load_prompts(str(tmp_path / "a.jsonl"), limit=40, seed=3)
    assert len(drawn) == 20
    assert {p.id for p in drawn} == {p.id for p in again} < {p.id for p in more}
    assert {p.id for p in drawn} != {p.id for p in other}
    assert [p.id for p in again] == [p.id for p in load_prompts(str(tmp_path / "b.jsonl")) if p in again]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": \n', r"p\.jsonl:2: not JSON: Expecting value at column"),
        (
            "p.jsonl",
            '{"prompt": "a"}\n[1]\n',
            r"p\.jsonl:2: expected an object with named columns, found a list",
        ),
        ("p.jsonl", '{"quest": "a"}\n', r"p\.jsonl:1: no column holds a prompt; .*columns: quest"),
        ("p.jsonl", '{"prompt": 3}\n', r"p\.jsonl:1: prompt must be text or a list of messages, found 3"),
        ("p.jsonl", '{"prompt": "  "}\n', r"p\.jsonl:1: prompt has no user message with text"),
        ("p.jsonl", '{"messages": []}\n', r"p\.jsonl:1: messages has no user message"),
        ("p.jsonl", '{"messages": ["hi"]}\n', r"p\.jsonl:1: messages\[0\] must be an object .* found 'hi'"),
        (
            "p.jsonl",
            '{"messages": [{"role": "robot", "content": "x"}]}\n',
            r"p\.jsonl:1: messages\[0\] has the role 'robot'; known are user",
        ),
        (
            "p.jsonl",
            '{"messages": [{"role": "user", "content": [{"type": "image"}]}]}\n',
            r"p\.jsonl:1: the content of messages\[0\] must be text, found a part",
        ),
        (
            "p.jsonl",
            '{"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]}\n',
            "ends with a system prompt",
        ),
        ("p.jsonl", '{"messages": "hello"}\n', r"messages must be a list of messages, found text"),
        ("p.jsonl", '{"messages": [{"role": ["user"], "content": "x"}]}\n', r"has the role \['user'\]"),
        (
            "p.jsonl",
            '{"messages": [{"role": "assistant", "content": "x", "reasoning_content": 5}]}\n',
            r"the reasoning_content of messages\[0\] must be text, found 5",
        ),
        (
            "p.jsonl",
            '{"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": 1}]}]}\n',
            r"messages\[0\] calls a tool",
        ),
        (
            "p.jsonl",
            '{"messages": [{"role": "user", "content": "x", "function_call": {"name": "f"}}]}\n',
            r"messages\[0\] calls a tool",
        ),
        ("p.jsonl", '{"instruction": [], "input": "x"}\n', r"instruction has no user message"),
        ("p.jsonl", "[" * 100_000, r"p\.jsonl:1: not readable as JSON"),
        ("p.jsonl", '{"prompt": ' + "1" * 5000 + "}", r"p\.jsonl:1: not readable as JSON"),
        ("p.json", '[{"prompt": "a"},\n {"prompt" "b"}]', r"p\.json:2: not JSON"),
        ("p.json", '{"prompt": "a"}', r"p\.json: expected a list of records, found an object"),
        ("p.csv", "prompt,x\na,1\nb\n", r"p\.csv:3: expected 2 fields"),
        ("p.csv", "prompt,x\na,1,2\n", r"p\.csv:2: expected 2 fields"),
        ("p.csv", 'prompt,x\n"a,1\n', r"p\.csv:2: unexpected end of data"),
        ("p.parquet", "PAR1 or not", r"p\.parquet is not readable as parquet"),
        ("p.docx", "x", r"p\.docx: prompts are read from \.arrow, \.csv, .*, \.txt files, not from '\.docx'"),
    ],
)
def test_malformed_files_name_the_line_and_what_was_found(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(CorpusError, match=message):
        load_prompts(str(path))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_messages_kept_as_json_text_are_a_conversation(tmp_path, kind):
    turns = [USER, {"role": "assistant", "content": "Rayleigh."}]
    record = {"messages": json.dumps(turns)}
    path = tmp_path / f"p.{kind}"
    if kind == "jsonl":
        jsonl(path, record)
    elif kind == "csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([record.keys(), record.values()])
    else:
        pq.write_table(pa.Table.from_pylist([record]), path)
    prompt = only(str(path))
    assert prompt.messages == turns
    assert prompt.is_finished


def test_half_an_emoji_becomes_a_question_mark_wherever_it_stands(tmp_path):
    half = "a\ud83d"
    answer = {"role": "assistant", "content": half, "reasoning_content": half}
    records = [
        {"prompt": half},
        {"instruction": "b", "input": half},
        {"prompt": [{"role": "user", "content": "c " + half}], "completion": [answer]},
    ]
    said = str([prompt.messages for prompt in load_prompts(jsonl(tmp_path / "p.jsonl", *records))])
    assert said.count("a?") == 5
    said.encode()


def test_times_in_parquet_are_no_tags_and_need_not_exist_in_python(tmp_path):
    columns = {
        "prompt": ["Why?"],
        "when": pa.array([2**62], pa.timestamp("ms")),
        "took": pa.array([2**62], pa.duration("ms")),
        "level": [3],
    }
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    assert only(str(tmp_path / "p.parquet")).tags == {"level": 3}


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("p.json", '{"prompt": "a"}\n{"prompt": "b"}\n', "ends in .jsonl"),
        ("p.json", '{"prompt": "a"}\n', "ends in .jsonl"),
        ("p.csv", "prompt\n" + "a" * 131_073 + "\n", "Use .jsonl or .parquet"),
    ],
)
def test_a_file_under_the_wrong_name_or_kind_says_which_is_right(tmp_path, name, content, hint):
    (tmp_path / name).write_text(content)
    with pytest.raises(CorpusError) as caught:
        load_prompts(str(tmp_path / name))
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["a\0b.jsonl", "a" * 300 + ".jsonl"], ids=["null", "long"])
def test_names_that_no_system_knows(name):
    with pytest.raises(CorpusError):
        load_prompts(name)


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.csv", "p.txt"])
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_files(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(EmptyCorpusError, match="contains no prompt"):
        load_prompts(str(tmp_path / name))


def test_missing_file_directory_and_foreign_bytes(tmp_path):
    with pytest.raises(CorpusError, match=r"nothing\.jsonl: no such file"):
        load_prompts(str(tmp_path / "nothing.jsonl"))
    with pytest.raises(CorpusError, match=r"nothing\.parquet: no such file"):
        load_prompts(str(tmp_path / "nothing.parquet"))
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(CorpusError, match="is a directory"):
        load_prompts(str(tmp_path / "d.jsonl"))
    (tmp_path / "latin.txt").write_bytes("Käse".encode("latin-1"))
    with pytest.raises(CorpusError, match=r"latin\.txt is not UTF-8"):
        load_prompts(str(tmp_path / "latin.txt"))


def test_mmlu_questions_over_57_subjects():
    prompts = load_prompts("package:mmlu")
    assert len(prompts) == 281
    assert len({prompt.tags["subject"] for prompt in prompts}) == 57
    assert all("(A)" in prompt.messages[0]["content"] for prompt in prompts)
    assert {prompt.source for prompt in prompts} == {"package:mmlu"}
    for prompt in prompts:  # the right answer is one of the choices
        assert f"({prompt.tags['answer']})" in prompt.messages[0]["content"]
    # The questions of lm-eval 0.4.13, in its order: results with them stay comparable.
    ids = sha256_json([prompt.id for prompt in prompts])
    assert ids == "73bc8b122d1006238031ec06bce1ed585134b420ac720298fbb8edc3b72e0b9b"


def test_unknown_package():
    with pytest.raises(CorpusError, match="no package of prompts named 'gsm8k'"):
        load_prompts("package:gsm8k")


@pytest.mark.parametrize(
    ("text", "answer", "thoughts"),
    [
        ("Plain.", "Plain.", None),
        ("<think>a</think>b", "b", "a"),
        ("\n<think>\na\n</think>\n\nb\n", "b", "a"),
        ("<think>\n\n</think>\n\nb", "b", None),
        ("<think>never closed", "", "never closed"),
        ("opened by the template</think>\n\nb", "b", "opened by the template"),
        ("Say <think> and </think> aloud.", "Say <think> and </think> aloud.", None),
        ("<think>a</think>b </think> c", "b </think> c", "a"),
    ],
)
def test_reasoning_is_split_off(text, answer, thoughts):
    assert split_reasoning(text) == (answer, thoughts)


@given(st.text(), st.text())
def test_splitting_inverts_joining(thoughts, answer):
    thoughts = thoughts.replace("</think>", "").strip()
    answer = answer.strip("\n")
    assert split_reasoning(f"<think>\n{thoughts}\n</think>\n\n{answer}") == (answer, thoughts or None)
