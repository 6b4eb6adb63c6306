"""Filters: what each turns away, that it is counted and kept, and that order makes no difference."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from corpus_helpers import FakeTeacher, make_prompt, make_prompts, make_row, run_collect

from stillhouse.corpus import REJECT_SCHEMA, Corpus, filter_corpus
from stillhouse.corpus.schema import SCHEMA
from stillhouse.corpus.store.external_sort import sorted_rows
from stillhouse.errors import ApiError, ContextLengthError
from stillhouse.recipe import Filter

OFF = {
    "truncated": False,
    "refusals": False,
    "min_chars": 0,
    "near_duplicates": None,
    "contamination_ngram": None,
}


def distinct_words(number: int, count: int) -> str:
    draw = random.Random(number)
    return " ".join(f"w{draw.randrange(10**6)}" for _ in range(count))


def apply(tmp_path, rows, *, held_out=(), dropped=(), **settings):
    """Filters ``rows``; returns the summary, the ids kept, and reason and detail by rejected id."""
    source, target = Corpus(tmp_path / "source"), Corpus(tmp_path / "kept")
    source.replace(rows)
    summary = filter_corpus(
        source, target, Filter(**OFF | settings), held_out=list(held_out), dropped=dropped
    )
    rejects = Corpus(tmp_path / "rejects", schema=REJECT_SCHEMA).rows()
    return (
        summary,
        [row["id"] for row in target.rows()],
        {row["id"]: (row["reason"], row["detail"]) for row in rejects},
    )


def thinking(number: int, answer: str):
    row = make_row(number, answer=answer)
    row["messages"][1]["reasoning_content"] = "a long thought"
    return row


def test_thoughts_may_be_left_out_of_what_is_kept(tmp_path):
    rows = [thinking(1, "seven"), make_row(2, answer="eight")]
    for settings, thoughts in (({}, 1), ({"thoughts": False}, 0)):
        apply(tmp_path, rows, **settings)
        kept = [row["messages"][-1] for row in Corpus(tmp_path / "kept").rows()]
        assert [turn["content"] for turn in kept] == ["seven", "eight"]
        assert sum(bool(turn.get("reasoning_content")) for turn in kept) == thoughts


@pytest.mark.parametrize(
    ("settings", "row", "reason"),
    [
        ({}, make_row(1, answer=" \n"), "empty"),
        ({}, thinking(1, ""), "empty"),
        ({"truncated": True}, make_row(1, finish_reason="length"), "truncated"),
        ({"min_chars": 11}, make_row(1, answer="ten chars!"), "too short"),
        ({"max_chars": 9}, make_row(1, answer="ten chars!"), "too long"),
        ({"refusals": True}, make_row(1, answer="I'm sorry, but I can't help with that."), "refusal"),
    ],
)
def test_each_check_turns_away_its_own(tmp_path, settings, row, reason):
    other = make_row(2, answer="A proper answer"[:15] if "min_chars" in settings else "Fine.")
    summary, kept, rejects = apply(tmp_path, [row, other], **settings)
    assert kept == [other["id"]]
    assert rejects[row["id"]][0] == reason
    assert summary.rejected[reason] == 1
    assert sum(summary.rejected.values()) == 1
    if reason != "empty":
        summary, kept, rejects = apply(tmp_path, [row, other])
        assert (len(kept), rejects, summary.rejected) == (2, {}, {"empty": 0, "too short": 0})


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({}, None), ({"truncated": True}, "empty"), ({"thoughts": False}, "empty")],
)
def test_thoughts_that_were_cut_off_stay_where_cut_off_answers_do(tmp_path, settings, reason):
    cut_off = thinking(1, "") | {"finish_reason": "length"}
    nothing = make_row(2, answer="", finish_reason="length")
    _, kept, rejects = apply(tmp_path, [cut_off, nothing], **settings)
    assert kept == ([] if reason else [cut_off["id"]])
    expected = {cut_off["id"]: (reason, "")} if reason else {}
    assert rejects == expected | {nothing["id"]: ("empty", "")}


def test_every_row_is_kept_or_rejected_once_with_all_its_columns(tmp_path):
    answers = ["", "I cannot help with that.", "x" * 500, "short", "fine answer"]
    ends = ["length", "stop", "stop", "stop", "stop", "stop", "stop"]
    rows = [make_row(n, answer=answers[n % 5], finish_reason=ends[n % 7]) for n in range(70)]
    summary, kept, rejects = apply(tmp_path, rows, truncated=True, refusals=True, min_chars=6, max_chars=100)
    assert sorted([*kept, *rejects]) == [row["id"] for row in rows]
    assert summary.kept == len(kept) == 12
    assert summary.rejected == {
        "empty": 14,
        "truncated": 8,
        "too short": 12,
        "too long": 12,
        "refusal": 12,
    }
    stored = {row["id"]: row for row in Corpus(tmp_path / "rejects", schema=REJECT_SCHEMA).rows()}
    for row in rows:
        if row["id"] in stored:
            assert row.items() <= stored[row["id"]].items()


def test_held_out_rows_are_measured_with_not_learned_from(tmp_path):
    copied = distinct_words(1, 40)
    held_out = make_prompt(copied)
    rows = [
        make_row(1, split="held_out", question=copied, answer=copied),
        make_row(2, split="held_out", answer="I cannot help with that."),
        make_row(3, split="held_out", answer=""),
        make_row(4, answer=distinct_words(4, 40)),
        make_row(5, split="held_out", answer=distinct_words(4, 40)),
    ]
    summary, kept, rejects = apply(
        tmp_path,
        rows,
        held_out=[held_out],
        refusals=True,
        near_duplicates=0.9,
        contamination_ngram=13,
    )
    assert kept == ["id000001", "id000002", "id000004", "id000005"]
    assert (summary.kept, summary.held_out) == (1, 3)
    assert rejects == {"id000003": ("empty", "")}


def test_contamination_in_prompts_answers_and_thoughts(tmp_path):
    secret = distinct_words(1, 20)
    quoted = " ".join(secret.split()[3:16]).upper().replace(" ", ", ")
    almost = " ".join(secret.split()[3:15])
    rows = [
        make_row(1, question=f"Tell me: {quoted}?"),
        make_row(2, answer=f"As they say, {quoted}!"),
        make_row(3, answer=f"{almost} and something else"),
        make_row(4, question=distinct_words(9, 30), answer=distinct_words(10, 30)),
        make_row(5, question="Why?"),
    ]
    rows.append(make_row(6))
    rows[-1]["messages"][1]["reasoning_content"] = f"I remember {quoted}"
    _, kept, rejects = apply(
        tmp_path, rows, held_out=[make_prompt(secret), make_prompt("why")], contamination_ngram=13
    )
    assert kept == ["id000003", "id000004"]
    assert {id: reason for id, (reason, _) in rejects.items()} == dict.fromkeys(
        ["id000001", "id000002", "id000005", "id000006"], "contamination"
    )
    assert " ".join(secret.split()[3:16]) in rejects["id000002"][1]


def test_contamination_agrees_with_the_split(tmp_path):
    """What split_held_out lets through, the filter lets through too."""
    from stillhouse.corpus import load_prompts, split_held_out

    train, held_out, dropped = split_held_out(load_prompts("package:mmlu"), 57, seed=4)
    rows = [
        make_row(n, prompt_id=prompt.id, question=prompt.messages[0]["content"], answer=f"It is {n}.")
        for n, prompt in enumerate([*train, *dropped])
    ]
    summary, _, rejects = apply(tmp_path, rows, held_out=held_out, contamination_ngram=13)
    assert summary.kept == len(train)
    assert set(rejects) == {f"id{n:06d}" for n in range(len(train), len(rows))}


def test_failed_requests_and_dropped_prompts_join_the_rejects(tmp_path):
    prompts = make_prompts(5)
    failures = {0: ContextLengthError("too long"), 1: ApiError("503")}

    def answer(request):
        number = int(request.messages[0]["content"].split()[2].rstrip(":"))
        return failures.get(number, f"Answer {number}.")

    source = Corpus(tmp_path / "collected")
    run_collect(FakeTeacher(answer), prompts, source)
    dropped = [make_prompt("like a held-out one")]
    summary = filter_corpus(source, Corpus(tmp_path / "kept"), Filter(), held_out=[], dropped=dropped)
    assert summary.kept == 3
    found = {key: count for key, count in summary.rejected.items() if count}
    assert found == {
        "longer than the context": 1,
        "no answer from the API": 1,
        "prompt overlaps a held-out one": 1,
    }
    rejects = {row["prompt_id"]: row for row in Corpus(tmp_path / "rejects", schema=REJECT_SCHEMA).rows()}
    assert rejects[prompts[0].id]["detail"] == "too long"
    assert rejects[prompts[0].id]["messages"] == prompts[0].messages
    assert rejects[dropped[0].id]["messages"] == dropped[0].messages
    run_collect(FakeTeacher(), prompts, source)
    summary = filter_corpus(source, Corpus(tmp_path / "kept"), Filter(), held_out=[])
    assert (summary.kept, summary.rejected["longer than the context"]) == (4, 1)
    assert "no answer from the API" not in summary.rejected


def test_result_does_not_depend_on_the_order_of_collecting(tmp_path):
    rows = [
        make_row(n, prompt_id=f"p{n % 30:02d}", sample=n // 30, answer=distinct_words(n % 17, 30))
        for n in range(90)
    ]
    results = []
    for seed in range(3):
        place = tmp_path / str(seed)
        shuffled = random.Random(seed).sample(rows, len(rows))
        summary, _, rejects = apply(place, shuffled, near_duplicates=0.9)
        results.append((list(Corpus(place / "kept").rows()), rejects, summary))
    assert results[0] == results[1] == results[2]
    kept = results[0][0]
    assert [(row["prompt_id"], row["sample"]) for row in kept] == sorted(
        (row["prompt_id"], row["sample"]) for row in kept
    )
    assert len(kept) == 17


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 57])
def test_sorting_in_runs_is_sorting(tmp_path, count):
    rows = [make_row(n, prompt_id=f"{(n * 7919) % 31}") for n in range(count)]
    key = lambda row: (row["prompt_id"], row["id"])  # noqa: E731
    merged = sorted_rows(iter(rows), key, SCHEMA, tmp_path, run_rows=10)
    assert [row["id"] for row in merged] == [row["id"] for row in sorted(rows, key=key)]
    assert list(tmp_path.iterdir()) == []


MEMORY = """
import sys
from stillhouse.corpus import Corpus, filter_corpus
from stillhouse.recipe import Filter

def peak_mib_after(name):
    source, target = Corpus(sys.argv[1] + "/" + name), Corpus(sys.argv[1] + "/kept")
    filter_corpus(source, target, Filter(near_duplicates=None), held_out=[])
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return len(target), int(line.split()[1]) / 1024

small, base = peak_mib_after("small")
large, peak = peak_mib_after("large")
print(small, large, peak - base)
"""


def test_filtering_does_not_hold_the_corpus(tmp_path):
    """Three times as many rows, 100 MB more as text, take at most 40 MiB more memory."""
    answer = "word " * 2400
    for name, rows in (("small", 4200), ("large", 12_600)):
        numbers = ((n * 7919) % rows for n in range(rows))
        Corpus(tmp_path / name).replace(make_row(n, answer=f"{n} {answer}") for n in numbers)
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    small, large, grown_mib = map(float, done.stdout.split())
    assert (small, large) == (4200, 12_600)
    assert grown_mib < 40


REASONS = {
    "stop": None,
    "unknown": None,
    "banana": None,
    "length": "truncated",
    "MAX_TOKENS": "truncated",
    "tool_calls": "truncated",
    "content_filter": "content filter",
    "SAFETY": "content filter",
    "error": "provider failed",
}


@pytest.mark.parametrize(("finish_reason", "rejected"), REASONS.items())
def test_how_an_answer_ended_decides(tmp_path, finish_reason, rejected):
    """The words of other providers are in the corpora of version 0.2.0."""
    row = make_row(1, finish_reason=finish_reason)
    _, kept, rejects = apply(tmp_path, [row], truncated=True)
    assert kept == ([] if rejected else [row["id"]])
    assert [reason for reason, _ in rejects.values()] == ([rejected] if rejected else [])
    _, kept, _ = apply(tmp_path, [row], truncated=False, content_filter=False)
    assert kept == ([] if rejected == "provider failed" else [row["id"]])
