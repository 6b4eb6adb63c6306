"""Collecting through the real API client from a server on loopback."""

from __future__ import annotations

import asyncio

import pytest
from corpus_helpers import make_prompts
from misbehaving_server import MODEL, Teacher, error, serving

from stillhouse.corpus import Corpus, collect_answers, filter_corpus
from stillhouse.errors import CreditError, ModelError, ParameterError
from stillhouse.models import open_model
from stillhouse.recipe import Collect, Filter, Teacher as TeacherSettings


def collect(teacher, corpus, *, count=24, concurrency=2, retries=2, **settings):
    """Collects from ``teacher``, served for this call."""

    async def run(url):
        # The same reference in every run, whatever the port: it is part of an answer's id.
        model = open_model(f"api:{url}#{MODEL}", retries=retries)
        model.fingerprint = "f" * 64
        try:
            return await collect_answers(
                model,
                [("train", prompt) for prompt in make_prompts(count)],
                corpus,
                Collect(concurrency=concurrency, **settings),
                teacher=TeacherSettings(model=model.reference),
                terms="mit",
                seed=0,
            )
        finally:
            await model.close()

    with serving(teacher) as url:
        return asyncio.run(run(url))


def test_a_topped_up_account_goes_on(tmp_path):
    corpus, teacher = Corpus(tmp_path), Teacher(credit=6)
    with pytest.raises(CreditError, match=r"6 of 24 answered; .*Insufficient Balance"):
        collect(teacher, corpus)
    assert len(corpus) == 6
    assert len(teacher.arrivals) <= 8
    teacher = Teacher()
    assert collect(teacher, corpus).collected == len(teacher.arrivals) == 18
    assert len(corpus) == 24


def test_a_parameter_that_a_server_refuses_stops_with_its_words(tmp_path):
    refusal = error(400, "Unrecognized request argument supplied: top_k", "unknown_parameter")
    teacher = Teacher(refuses={("top_k",): refusal})
    with pytest.raises(ParameterError, match="Unrecognized request argument supplied: top_k") as caught:
        collect(teacher, Corpus(tmp_path), top_k=5)
    assert "collect.top_k" in str(caught.value.hint)
    assert len(teacher.arrivals) <= 2


def test_refusals_without_a_reason_stop_after_twenty(tmp_path):
    teacher = Teacher(faults=1.0, kinds=("400",), most_faults=99)
    with pytest.raises(ModelError, match=r"0 answered, 20 failed: .*as ordered: 400"):
        collect(teacher, Corpus(tmp_path), count=100)


CHANGES = {
    "broken off": {"finish_reason": "error", "error": {"code": 502, "message": "Provider disconnected"}},
    "cut off": {"finish_reason": "MAX_TOKENS"},
    "filtered": {"finish_reason": "content_filter"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_half_answers_are_not_learned(tmp_path, name):
    """Every other answer is half of one; what broke off is asked again."""
    calls = iter(range(10**6))

    def shape(answer):
        if next(calls) % 2:
            choice = answer["choices"][0]
            choice["message"]["content"] = choice["message"]["content"][:20]
            choice |= CHANGES[name]

    corpus = Corpus(tmp_path / "collected")
    summary = collect(Teacher(shape=shape), corpus, count=10, concurrency=1)
    assert summary.collected == 10
    kept = filter_corpus(corpus, Corpus(tmp_path / "kept"), Filter(), held_out=[])
    halves = {"broken off": {}, "cut off": {"truncated": 5}, "filtered": {"content filter": 5}}
    expected = {"content filter": 0, "truncated": 0} | halves[name]
    assert {key: kept.rejected.get(key, 0) for key in expected} == expected
    assert kept.kept == 10 - sum(expected.values())
