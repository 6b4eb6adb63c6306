"""Two teachers answer into one corpus, each its own prompts."""

from __future__ import annotations

import asyncio

from corpus_helpers import FakeTeacher, make_prompt

from stillhouse.corpus import Corpus, collect_answers
from stillhouse.recipe import Collect, Teacher

PRICED = Teacher(model="fake:teacher", price_in=1e5, price_out=1e5)  # $ 3 an answer of 30 tokens


def other_teacher(**options) -> FakeTeacher:
    model = FakeTeacher(**options)
    model.reference, model.fingerprint = "fake:other", "e" * 64
    return model


def ask(model, corpus, prompts, others=(), **settings):
    return asyncio.run(
        collect_answers(
            model,
            [("train", prompt) for prompt in prompts],
            corpus,
            Collect(**settings),
            teacher=PRICED,
            terms=f"terms of {model.reference}",
            seed=0,
            other_prompts={prompt.id for prompt in others},
        )
    )


CODE, PROSE = ([make_prompt(f"{kind} {n}", domain=kind) for n in range(5)] for kind in ("code", "prose"))


def test_each_row_names_its_teacher_and_nobody_sets_the_others_aside(tmp_path):
    corpus = Corpus(tmp_path)
    ask(FakeTeacher(), corpus, PROSE, others=CODE)
    ask(other_teacher(), corpus, CODE, others=PROSE)
    first = ask(FakeTeacher(), corpus, PROSE, others=CODE)
    second = ask(other_teacher(), corpus, CODE, others=PROSE)
    assert (first.set_aside, second.set_aside) == (0, 0)
    assert (first.collected, second.collected) == (0, 0)  # the second time there was nothing to ask
    assert (first.finished_before, second.finished_before) == (5, 5)
    assert second.completion_tokens == 100  # of its own rows
    assert {(row["teacher"], row["terms"], row["messages"][0]["content"][:4]) for row in corpus.rows()} == {
        ("fake:teacher", "terms of fake:teacher", "pros"),
        ("fake:other", "terms of fake:other", "code"),
    }


def test_a_prompt_that_moves_to_another_teacher_is_asked_anew_and_its_old_answer_set_aside(tmp_path):
    corpus = Corpus(tmp_path)
    ask(FakeTeacher(), corpus, [*PROSE, *CODE])
    kept = ask(FakeTeacher(), corpus, PROSE, others=CODE)
    moved = ask(other_teacher(), corpus, CODE, others=PROSE)
    assert (kept.set_aside, kept.collected) == (0, 0)
    assert (moved.set_aside, moved.collected) == (5, 5)
    assert len(corpus) == 10
    back = ask(FakeTeacher(), corpus, [*PROSE, *CODE])
    assert (back.set_aside, back.collected) == (5, 0)  # what was set aside has come back


def test_a_prompt_that_nobody_is_asked_any_more_is_set_aside(tmp_path):
    corpus = Corpus(tmp_path)
    ask(FakeTeacher(), corpus, PROSE, others=CODE)
    ask(other_teacher(), corpus, CODE, others=PROSE)
    assert ask(other_teacher(), corpus, CODE, others=PROSE[:3]).set_aside == 2


def test_limits_are_for_all_teachers_together(tmp_path):
    for limit in ({"max_cost": 21.0}, {"max_total_tokens": 210}):
        corpus = Corpus(tmp_path / next(iter(limit)))
        ask(FakeTeacher(), corpus, PROSE, others=CODE)  # 5 answers: $ 15, 150 tokens
        found = ask(other_teacher(), corpus, CODE, others=PROSE, max_tokens=5, concurrency=1, **limit)
        assert found.stopped_by == next(iter(limit))
        assert 0 < found.collected < 3
