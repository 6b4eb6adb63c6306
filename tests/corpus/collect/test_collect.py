"""Collecting: what is asked, how fast, for how much, and what happens when it goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json

import pytest
from corpus_helpers import FakeTeacher, make_prompt, make_prompts, run_collect
from hypothesis import given, settings, strategies as st

from stillhouse.console import console
from stillhouse.corpus import Corpus, Prompt, collect_answers
from stillhouse.corpus.collect.failures import Failures
from stillhouse.errors import (
    ApiError,
    AuthenticationError,
    ContextLengthError,
    CreditError,
    EmptyCorpusError,
    ModelError,
    ParameterError,
    PromptRefusedError,
)
from stillhouse.models import Reply
from stillhouse.models.backends.concurrency import AdaptiveConcurrency
from stillhouse.recipe import Collect, Teacher


def reply(text="fine", *, tokens=20, **fields) -> Reply:
    return Reply(text, fields.pop("reasoning", None), "stop", 10, tokens, **fields)


def asked(teacher: FakeTeacher) -> list[str]:
    return [id for batch in teacher.asked for id in batch]


def test_every_prompt_is_answered_with_its_lineage(tmp_path):
    prompts = make_prompts(7)
    held_out = [make_prompt("Held out?", subject="law")]
    corpus = Corpus(tmp_path)
    teacher = Teacher(model="x", price_in=1.0, price_out=2.0)
    summary = run_collect(
        FakeTeacher(), prompts, corpus, held_out=held_out, teacher=teacher, samples=3, temperature=0.7
    )
    assert (summary.asked, summary.collected, summary.failed) == (22, 22, {})
    assert (summary.prompt_tokens, summary.completion_tokens) == (220, 440)
    assert summary.cost_usd == pytest.approx((220 * 1 + 440 * 2) / 1e6)
    rows = list(corpus.rows())
    assert len({row["id"] for row in rows}) == len({row["seed"] for row in rows}) == 22
    assert sorted((row["prompt_id"], row["sample"]) for row in rows if row["split"] == "train") == sorted(
        (prompt.id, sample) for prompt in prompts for sample in range(3)
    )
    (measured,) = corpus.rows("held_out")
    assert measured["messages"] == [
        {"role": "user", "content": "Held out?"},
        {"role": "assistant", "content": f"Answer {measured['seed']}."},
    ]
    assert json.loads(measured["tags"]) == {"subject": "law"}
    expected = {
        "teacher": "fake:teacher",
        "teacher_hash": "f" * 64,
        "template_hash": "t" * 64,
        "terms": "apache-2.0",
        "prompt_source": "test",
        "temperature": 0.7,
        "max_tokens": 512,
        "finish_reason": "stop",
        "cost_usd": pytest.approx(5e-5),
    }
    assert {key: measured[key] for key in expected} == expected


def test_reasoning_logprobs_and_request_ids_are_kept(tmp_path):
    answers = iter(
        [
            reply("A", reasoning="from a field", request_id="req-1", top_logprobs=[{"token": "A"}]),
            reply("B: close it with\n</think>\n\nand go on."),  # the model's reply is split already
        ]
    )
    corpus = Corpus(tmp_path)
    run_collect(FakeTeacher(lambda request: next(answers)), make_prompts(2), corpus)
    first, second = sorted(corpus.rows(), key=lambda row: row["messages"][-1]["content"])
    assert first["messages"][-1] == {
        "role": "assistant",
        "content": "A",
        "reasoning_content": "from a field",
    }
    assert (first["request_id"], first["top_logprobs"]) == ("req-1", '[{"token": "A"}]')
    assert second["messages"][-1] == {
        "role": "assistant",
        "content": "B: close it with\n</think>\n\nand go on.",
    }


def test_system_prompt_goes_before_conversations_that_have_none(tmp_path):
    own = [{"role": "system", "content": "Own."}, {"role": "user", "content": "b"}]
    prompts = [make_prompt("a"), Prompt("own", own, "test")]
    corpus = Corpus(tmp_path)
    run_collect(FakeTeacher(), prompts, corpus, teacher=Teacher(model="x", system="Be brief."))
    systems = {row["prompt_id"]: row["messages"][0]["content"] for row in corpus.rows()}
    assert systems == {prompts[0].id: "Be brief.", "own": "Own."}


def test_finished_exchanges_are_imported_without_asking(tmp_path):
    finished = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A", "reasoning_content": "hm"},
    ]
    corpus = Corpus(tmp_path)
    teacher = FakeTeacher()
    summary = run_collect(teacher, [Prompt("p", finished, "file.jsonl")], corpus, samples=4)
    assert (summary.imported, summary.collected, teacher.asked) == (1, 0, [])
    (row,) = corpus.rows()
    assert row["messages"] == finished
    assert (row["teacher"], row["teacher_hash"], row["terms"]) == ("imported", None, "apache-2.0")
    assert run_collect(teacher, [Prompt("p", finished, "file.jsonl")], corpus).imported == 0


def test_second_run_asks_nothing_and_a_larger_one_only_what_is_new(tmp_path):
    prompts = make_prompts(10)
    corpus = Corpus(tmp_path)
    run_collect(FakeTeacher(), prompts, corpus)
    first = corpus.ids()
    teacher = FakeTeacher()
    assert run_collect(teacher, prompts, corpus).finished_before == 10
    assert teacher.asked == []
    summary = run_collect(teacher, make_prompts(12), corpus, samples=2)
    assert (summary.asked, summary.collected, summary.set_aside) == (24, 14, 0)
    assert first.isdisjoint(asked(teacher))


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.3},
        {"max_tokens": 64},
        {"seed": 5},
        {"teacher": Teacher(model="fake:teacher", system="Be brief.")},
    ],
)
def test_answers_to_another_recipe_are_set_aside_and_come_back(tmp_path, change):
    prompts = make_prompts(6)
    corpus = Corpus(tmp_path)
    run_collect(FakeTeacher(), prompts, corpus)
    before = {row["id"]: row for row in corpus.rows()}
    summary = run_collect(FakeTeacher(), prompts, corpus, **change)
    assert (summary.collected, summary.set_aside) == (6, 6)
    assert corpus.ids().isdisjoint(before)
    teacher = FakeTeacher()
    summary = run_collect(teacher, prompts, corpus)
    assert (summary.collected, summary.finished_before, teacher.asked) == (0, 6, [])
    assert {row["id"]: row for row in corpus.rows()} == before


def test_corpus_holds_the_present_split_and_prompts_only(tmp_path):
    prompts = make_prompts(9)
    corpus = Corpus(tmp_path, shard_rows=4)
    run_collect(FakeTeacher(), prompts, corpus)
    teacher = FakeTeacher()
    summary = run_collect(teacher, prompts[3:6], corpus, held_out=prompts[6:])
    assert (teacher.asked, summary.set_aside) == ([], 3)
    assert {row["prompt_id"]: row["split"] for row in corpus.rows()} == {
        **{prompt.id: "train" for prompt in prompts[3:6]},
        **{prompt.id: "held_out" for prompt in prompts[6:]},
    }


@pytest.mark.parametrize(
    ("theirs", "batch", "ours", "calls", "in_each"),
    [(8, 1, 3, 3, 1), (2, 1, 16, 2, 1), (1, 8, 16, 1, 8), (1, 32, 16, 1, 16), (4, 4, 10, 2, 4)],
)
def test_requests_under_way_reach_the_limits_and_not_more(tmp_path, theirs, batch, ours, calls, in_each):
    teacher = FakeTeacher(max_batch=batch, concurrency=theirs, delay_s=0.002)
    run_collect(teacher, make_prompts(40), Corpus(tmp_path), concurrency=ours)
    assert (teacher.most_under_way, max(map(len, teacher.asked))) == (calls, in_each)


def test_batches_are_the_same_after_an_interruption(tmp_path):
    prompts = make_prompts(22)
    whole = FakeTeacher(max_batch=5, concurrency=1)
    run_collect(whole, prompts, Corpus(tmp_path / "whole"))
    assert [len(batch) for batch in whole.asked] == [5, 5, 5, 5, 2]

    def stops(request):
        if request.id == whole.asked[2][0]:
            raise AuthenticationError("key revoked")
        return "fine"

    with pytest.raises(AuthenticationError):
        run_collect(FakeTeacher(stops, max_batch=5, concurrency=1), prompts, Corpus(tmp_path / "resumed"))
    second = FakeTeacher(max_batch=5, concurrency=1)
    run_collect(second, prompts, Corpus(tmp_path / "resumed"))
    assert second.asked == whole.asked[2:]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_seeds_repeat_and_differ_where_they_should(tmp_path, temperature):
    def seeds(name, seed):
        corpus = Corpus(tmp_path / name)
        run_collect(FakeTeacher(), make_prompts(5), corpus, samples=2, seed=seed, temperature=temperature)
        return {(row["prompt_id"], row["sample"]): row["seed"] for row in corpus.rows()}

    first = seeds("a", 1)
    assert first == seeds("b", 1)
    other = seeds("c", 2)
    assert first.keys() == other.keys()
    assert not set(first.values()) & set(other.values())
    assert all(0 <= value < 2**31 for value in first.values())


# Budgets


@settings(max_examples=40, deadline=None)
@given(
    limit=st.integers(0, 4000),
    batch=st.integers(1, 4),
    concurrency=st.integers(1, 6),
    lengths=st.lists(st.integers(1, 100), min_size=25, max_size=25),
)
def test_token_budget_is_never_exceeded_and_is_used_up(tmp_path_factory, limit, batch, concurrency, lengths):
    length = itertools.cycle(lengths)
    teacher = FakeTeacher(
        lambda request: reply(tokens=next(length)), max_batch=batch, concurrency=concurrency
    )
    corpus = Corpus(tmp_path_factory.mktemp("budget"))
    summary = run_collect(teacher, make_prompts(25), corpus, max_tokens=100, max_total_tokens=limit)
    spent = summary.prompt_tokens + summary.completion_tokens
    assert spent <= limit
    assert summary.stopped_by == (None if summary.collected == 25 else "max_total_tokens")
    if summary.stopped_by:
        assert spent > limit - 160  # what one more request might have taken


def test_cost_budget_stops_cleanly_counts_earlier_runs_and_resumes(tmp_path):
    prompts = make_prompts(30)
    corpus = Corpus(tmp_path)
    teacher = Teacher(model="x", price_in=10.0, price_out=100.0)  # 2.1 thousandths of a dollar a request
    options = {"teacher": teacher, "max_tokens": 20, "concurrency": 3}
    first = run_collect(FakeTeacher(), prompts, corpus, max_cost=0.0105, **options)
    assert first.stopped_by == "max_cost"
    assert first.collected in (4, 5)
    assert first.cost_usd == pytest.approx(first.collected * 0.0021)
    again = run_collect(FakeTeacher(), prompts, corpus, max_cost=0.0105, **options)
    assert (again.collected, again.stopped_by) == (0, "max_cost")
    last = run_collect(FakeTeacher(), prompts, corpus, max_cost=1.0, **options)
    assert (last.collected, last.stopped_by) == (30 - first.collected, None)
    assert last.cost_usd == pytest.approx(30 * 0.0021)


# Failures


def test_a_prompt_that_is_too_long_fails_alone_and_for_good(tmp_path):
    prompts = make_prompts(6)

    def answer(request):
        if "number 3" in request.messages[0]["content"]:
            return ContextLengthError("900 tokens, and the context has 512")
        return "fine"

    corpus = Corpus(tmp_path)
    summary = run_collect(FakeTeacher(answer), prompts, corpus)
    assert (summary.collected, summary.failed) == (5, {"longer than the context": 1})
    (line,) = Failures(tmp_path).latest().values()
    assert line["prompt_id"] == prompts[3].id
    assert line["detail"] == "900 tokens, and the context has 512"
    second = FakeTeacher(answer)
    assert run_collect(second, prompts, corpus).finished_before == 6
    assert second.asked == []


def test_a_request_the_api_did_not_answer_is_asked_again_by_the_next_run(tmp_path):
    prompts = make_prompts(6)
    corpus = Corpus(tmp_path)
    flaky = FakeTeacher(lambda r: ApiError("503") if "number 3" in r.messages[0]["content"] else "fine")
    assert run_collect(flaky, prompts, corpus).failed == {"no answer from the API": 1}
    second = FakeTeacher()
    assert run_collect(second, prompts, corpus).collected == 1
    assert len(asked(second)) == 1


@pytest.mark.parametrize("error", [ApiError("503"), ModelError("refused"), ParameterError("no top_k")])
def test_what_does_not_belong_to_the_prompt_is_asked_again(tmp_path, error):
    prompts, corpus = make_prompts(6), Corpus(tmp_path)
    count = itertools.count()
    flaky = FakeTeacher(lambda r: error if next(count) == 3 else "fine", concurrency=1)
    assert sum(run_collect(flaky, prompts, corpus).failed.values()) == 1
    summary = run_collect(FakeTeacher(), prompts, corpus)
    assert (summary.finished_before, summary.collected, summary.failed) == (5, 1, {})


def test_failures_of_earlier_runs_count(tmp_path):
    prompts, corpus = make_prompts(6), Corpus(tmp_path)
    teacher = FakeTeacher(
        lambda r: PromptRefusedError("flagged") if "number 3" in r.messages[0]["content"] else "fine"
    )
    for _ in range(2):
        summary = run_collect(teacher, prompts, corpus)
        assert summary.failed == {"refused by a content policy": 1}
        assert summary.failure_details == {"refused by a content policy": "flagged"}
    assert len(asked(teacher)) == 6


OLD_LINES = {
    "http://x/v1: Insufficient Balance": 1,
    "http://x/v1 refuses the request (400): unknown field seed": 1,
    "http://x/v1 refuses the request (400): Content Exists Risk": 0,
}


@pytest.mark.parametrize(("detail", "asked_again"), OLD_LINES.items())
def test_old_journals_call_every_refusal_final(tmp_path, detail, asked_again):
    """Version 0.2.0 wrote the reason ModelError; what cannot be told to be the prompt's is asked again."""
    prompts, corpus = make_prompts(3), Corpus(tmp_path)
    bad = FakeTeacher(lambda r: ModelError(detail) if "number 1" in r.messages[0]["content"] else "fine")
    run_collect(bad, prompts, corpus)
    path = tmp_path / "failures.jsonl"
    line = json.loads(path.read_text())
    path.write_text(json.dumps(line | {"reason": "ModelError", "final": True}) + "\n")
    assert run_collect(FakeTeacher(), prompts, corpus).collected == asked_again


def test_no_credit_stops_at_the_first_and_keeps_what_is_in_flight(tmp_path):
    """Answers in flight are paid for."""
    corpus = Corpus(tmp_path)
    teacher = FakeTeacher(delay_s=0.05, concurrency=4)
    calls = itertools.count()

    def paid(request):
        if next(calls) == 4:
            raise CreditError("Insufficient Balance")
        return "fine"

    teacher.answer = paid
    with pytest.raises(CreditError, match=r"^\d of 50 answered; Insufficient Balance"):
        run_collect(teacher, make_prompts(50), corpus)
    stored = len(corpus)
    assert len(asked(teacher)) == stored + 1 <= 12
    assert not (tmp_path / "failures.jsonl").exists()
    assert run_collect(FakeTeacher(), make_prompts(50), corpus).collected == 50 - stored


def test_refused_key_stops_at_once_and_keeps_what_was_answered(tmp_path):
    count = itertools.count()
    for number, wrap in enumerate([lambda error: error, lambda error: (_ for _ in ()).throw(error)]):
        count = itertools.count()
        teacher = FakeTeacher(
            lambda r, count=count, wrap=wrap: (
                "fine" if next(count) < 5 else wrap(AuthenticationError("the key was refused"))
            ),
            concurrency=2,
        )
        corpus = Corpus(tmp_path / str(number))
        with pytest.raises(AuthenticationError):
            run_collect(teacher, make_prompts(50), corpus)
        assert len(corpus) == 5
        assert len(asked(teacher)) <= 8


def test_a_dead_server_stops_collecting_soon(tmp_path):
    teacher = FakeTeacher(lambda r: ApiError("connection refused"))
    with pytest.raises(ApiError, match=r"0 answered, 20 failed: connection refused"):
        run_collect(teacher, make_prompts(500), Corpus(tmp_path), concurrency=4)
    assert len(asked(teacher)) < 30


def test_failures_of_one_kind_stop_once_the_run_cannot_succeed(tmp_path):
    """Every other request fails, so never twenty after another."""
    numbers = itertools.count()
    teacher = FakeTeacher(lambda r: ModelError("no such field") if next(numbers) % 2 else "fine")
    with pytest.raises(ModelError, match=r"\d+ answered, 20 failed: no such field"):
        run_collect(teacher, make_prompts(300), Corpus(tmp_path))
    assert len(asked(teacher)) < 60
    # 20 of 300 are tolerated here, and so are forty.
    numbers = itertools.count()
    teacher = FakeTeacher(lambda r: ApiError("busy") if next(numbers) % 5 == 0 else "fine")
    summary = run_collect(teacher, make_prompts(300), Corpus(tmp_path / "2"), tolerated_failures=0.3)
    assert (summary.collected, summary.failed) == (240, {"no answer from the API": 60})


def test_long_prompts_at_the_end_do_not_stop_a_collection(tmp_path):
    def answer(request):
        number = int(request.messages[0]["content"].split()[2].rstrip(":"))
        return ContextLengthError("900 tokens") if number >= 470 else "fine"

    summary = run_collect(FakeTeacher(answer), make_prompts(500), Corpus(tmp_path), tolerated_failures=0.1)
    assert summary.failed == {"longer than the context": 30}


def test_a_refused_parameter_stops_before_the_first_answer(tmp_path):
    teacher = FakeTeacher(lambda r: ParameterError("refuses `top_k`"), concurrency=4)
    with pytest.raises(ParameterError, match="top_k"):
        run_collect(teacher, make_prompts(500), Corpus(tmp_path))
    assert len(asked(teacher)) <= 4


def test_failures_are_no_progress(tmp_path, monkeypatch):
    advanced = []

    class Bar:
        def advance(self, n=1, **extras):
            advanced.append((n, extras))

    monkeypatch.setattr(console, "progress", lambda *_, **__: contextlib.nullcontext(Bar()))
    teacher = FakeTeacher(lambda r: ApiError("connection refused"), concurrency=1)
    with pytest.raises(EmptyCorpusError, match="fake:teacher: 0 answered, 12 failed: connection refused"):
        run_collect(teacher, make_prompts(12), Corpus(tmp_path))
    assert advanced == [(0, {"failed": n}) for n in range(1, 13)]


def test_settings_left_to_an_api_are_not_recorded_as_sent(tmp_path):
    """Local weights sample at temperature 1; an API has a default of its own, which is unknown."""
    teacher = FakeTeacher(lambda r: reply(not_sent=(*r.api_defaults, "seed")))
    local = Corpus(tmp_path / "local")
    run_collect(FakeTeacher(), make_prompts(2), local)
    assert {(row["temperature"], row["top_p"]) for row in local.rows()} == {(1.0, 1.0)}
    teacher.reference = "api:http://127.0.0.1:9/v1#m"
    corpus = Corpus(tmp_path / "api")
    summary = run_collect(teacher, make_prompts(2), corpus, top_p=0.9)
    assert [(r["temperature"], r["top_p"], r["seed"]) for r in corpus.rows()] == [(None, 0.9, None)] * 2
    assert summary.not_sent == {"temperature": 2, "seed": 2}
    # The same ids as before settings could be left open: no answer is paid for twice.
    assert local.ids() == corpus_ids(tmp_path / "old", temperature=1.0, top_p=1.0)


def corpus_ids(directory, **settings) -> set[str]:
    corpus = Corpus(directory)
    run_collect(FakeTeacher(), make_prompts(2), corpus, **settings)
    return corpus.ids()


def test_thoughts_that_were_switched_off_are_reported_once(tmp_path, capsys):
    teacher = FakeTeacher(lambda r: reply(reasoning="hm"))
    run_collect(teacher, make_prompts(3), Corpus(tmp_path), teacher=Teacher(model="x", enable_thinking=False))
    assert capsys.readouterr().err.count("thinks although teacher.enable_thinking is false") == 1


def test_options_of_requests_are_part_of_an_answers_identity(tmp_path):
    ids = [
        corpus_ids(tmp_path / str(number), teacher=Teacher(model="x", **options))
        for number, options in enumerate(
            [{}, {"enable_thinking": False}, {"reasoning_effort": "low"}, {"extra_body": {"a": 1}}]
        )
    ]
    assert len(set().union(*ids)) == 8


@pytest.mark.parametrize("count", [5, 400])
def test_a_teacher_that_says_nothing_is_an_error(tmp_path, count):
    teacher = FakeTeacher(lambda r: "  \n")
    with pytest.raises(EmptyCorpusError, match=r"fake:teacher answered \d+ prompts, each with an empty text"):
        run_collect(teacher, make_prompts(count), Corpus(tmp_path))
    assert len(asked(teacher)) < 40


def test_a_teacher_that_answers_no_prompt_is_an_error(tmp_path):
    teacher = FakeTeacher(lambda r: ContextLengthError("too long"))
    with pytest.raises(EmptyCorpusError, match="0 answered, 5 failed: too long"):
        run_collect(teacher, make_prompts(5), Corpus(tmp_path))


def test_one_word_among_silence_is_enough(tmp_path):
    teacher = FakeTeacher(lambda r: "word" if "number 0:" in r.messages[0]["content"] else "")
    assert run_collect(teacher, make_prompts(60), Corpus(tmp_path)).collected == 60


def test_cancelling_keeps_every_finished_answer_and_seals(tmp_path):
    corpus = Corpus(tmp_path)
    teacher = FakeTeacher(delay_s=0.01, concurrency=4)

    async def interrupted():
        prompts = [("train", prompt) for prompt in make_prompts(1000)]
        work = asyncio.create_task(
            collect_answers(
                teacher, prompts, corpus, Collect(), teacher=Teacher(model="x"), terms="mit", seed=0
            )
        )
        while len(teacher.asked) < 12:
            await asyncio.sleep(0.01)
        work.cancel()
        await work

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(interrupted())
    kept = corpus.ids()
    assert 4 < len(kept) < 1000
    assert len(corpus.shards()) == 1
    assert len(set(asked(teacher)) - kept) <= 4
    assert teacher.under_way == 0


# AdaptiveConcurrency


def test_pace_halves_once_a_round_and_climbs_one_a_round():
    concurrency = AdaptiveConcurrency(16)
    for left in range(15, -1, -1):  # all 16 of a round are pushed back
        concurrency.call_ended(overloaded=True, in_flight=left)
    assert (concurrency.limit, concurrency.lowest) == (8, 8)
    for _ in range(9):
        concurrency.call_ended(overloaded=False, in_flight=7)
    assert concurrency.limit == 9
    for _ in range(5):
        concurrency.call_ended(overloaded=True, in_flight=0)
    assert concurrency.limit == 1
    for _ in range(200):
        concurrency.call_ended(overloaded=False, in_flight=0)
    assert (concurrency.limit, concurrency.lowest) == (16, 1)


def test_pushing_back_lowers_the_number_of_calls_and_calm_raises_it(tmp_path):
    """A server that pushes back whenever more than 4 calls are under way ends up near 4."""
    calls: list[int] = []
    teacher = FakeTeacher(concurrency=64, delay_s=0.001)

    def answer(request):
        calls.append(teacher.under_way)
        teacher.pushbacks += teacher.under_way > 4
        return "fine"

    teacher.answer = answer
    summary = run_collect(teacher, make_prompts(600), Corpus(tmp_path), concurrency=32)
    assert summary.collected == 600
    assert summary.lowest_concurrency <= 4
    late = calls[300:]
    assert 2 <= sum(late) / len(late) <= 6
