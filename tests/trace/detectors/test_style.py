"""Style: attribution with an open "none of them", conformal among models, and never proof."""

import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from stillhouse.errors import ApiError
from stillhouse.models import Reply
from stillhouse.trace.detectors import style
from stillhouse.trace.detectors.style import FOLDS, PRIOR, conformal_p, likelihood_ratios

WORDS = [f"w{number}" for number in range(30)]
PROMPTS = {f"p{number}": [{"role": "user", "content": f"question {number}"}] for number in range(20)}


def writer(habits, seed):
    """A model that draws 25 words an answer from its habits."""
    generator = np.random.default_rng(seed)

    def ask(requests):
        return [Reply(" ".join(generator.choice(WORDS, 25, p=habits)), None, "stop", 1, 25) for _ in requests]

    return ask


def habits(generator):
    return generator.dirichlet(np.full(len(WORDS), 5.0))


def observed(suspect=None, *, near=0.0, references=19, candidates=2, seed=0, prompts=20):
    """A suspect with a share ``near`` of the first candidate's habits, among references with their own."""
    generator = np.random.default_rng(seed)
    teachers = [habits(generator) for _ in range(candidates)]
    own = (1 - near) * habits(generator) + near * (teachers[0] if teachers else 0)
    models = {"suspect": ("suspect", suspect or writer(own, seed + 1))}
    models |= {
        f"teacher {i}": ("candidate", writer(given, 1000 * seed + i)) for i, given in enumerate(teachers)
    }
    models |= {
        f"reference {i:02}": ("reference", writer(habits(generator), 7000 * seed + 100 + i))
        for i in range(references)
    }
    return style.observe(models, dict(list(PROMPTS.items())[:prompts]))


def judged(transcript, **parameters):
    return style.judge(transcript, {"seed": 0, "alpha": 0.05} | parameters)


def test_a_student_is_attributed_to_its_teacher_at_the_floor():
    finding = judged(observed(near=0.8))
    assert finding.p_value == pytest.approx(1 / 20)
    assert finding.effect["floor"] == pytest.approx(1 / 20)
    assert "attributed to: teacher 0" in finding.statistic
    assert finding.effect["ratio_teacher 0"] > finding.effect["ratio_teacher 1"]


def test_a_stranger_is_attributed_to_none_of_them():
    finding = judged(observed(seed=3))
    assert finding.p_value > 0.05
    assert "attributed to: none of them" in finding.statistic


def test_it_is_level_l0_and_says_that_it_is_never_hard():
    finding = judged(observed(near=0.95))
    assert finding.level == "L0"
    assert any("never hard" in a.evidence and a.held is None for a in finding.assumptions)
    assert finding.e_value < 3  # 1 / (2 √(1/20))
    few = judged(observed(near=0.95, references=5))
    assert any(a.held is False and "0.167" in a.evidence for a in few.assumptions)


def test_size_where_suspect_and_references_are_alike():
    ps = np.array([judged(observed(references=7, prompts=10, seed=seed)).p_value for seed in range(80)])
    for alpha in (0.125, 0.25, 0.5):
        assert stats.binom.sf((ps <= alpha).sum() - 1, len(ps), alpha) > 1e-3, alpha
    assert (ps <= 0.3).mean() > 0.15


def test_the_ratio_is_naive_bayes_written_out():
    """The same definition in plain loops over dictionaries."""
    transcript = observed(near=0.5, references=3, candidates=1)
    answers = style._answers(transcript)
    fast = likelihood_ratios(answers, 4)
    fold = {id: style._fold(id, 4) for id in answers.prompts}

    def runs(name, keep):
        marks = [answers.texts[name][id].split() for id in answers.prompts if keep(fold[id])]
        return Counter(
            " ".join(found[i : i + n])
            for found in marks
            for n in (1, 2, 3)
            for i in range(len(found) - n + 1)
        )

    every = set().union(*(runs(name, lambda _: True) for name in answers.texts))
    for row, name in enumerate(answers.tested):
        others = [other for other in answers.tested if other != name]
        total, size = 0.0, 0
        for held_out in range(FOLDS):
            counted = {
                model: runs(model, lambda f, held_out=held_out: f != held_out)
                for model in ("teacher 0", *others)
            }

            def logp(run, model, counted=counted):
                known = counted[model]
                return math.log((known[run] + PRIOR) / (known.total() + PRIOR * len(every)))

            for run, count in runs(name, lambda f, held_out=held_out: f == held_out).items():
                size += count
                background = sum(logp(run, other) for other in others) / len(others)
                total += count * (logp(run, "teacher 0") - background)
        assert fast[row, 0] == pytest.approx(total / size, abs=1e-9)


def test_conformal_rank():
    assert conformal_p(np.array([5.0, 1, 2, 3])) == 0.25
    assert conformal_p(np.array([2.0, 1, 2, 3])) == 0.75


def test_unanswered_prompts_are_left_out_for_all():
    good = writer(np.full(30, 1 / 30), 5)

    def sometimes(requests):
        return [ApiError("no") if i % 4 == 0 else reply for i, reply in enumerate(good(requests))]

    transcript = observed(sometimes)
    finding = judged(transcript)
    assert finding.ran
    assert any(a.held is False and "5 others" in a.evidence for a in finding.assumptions)

    def never(requests):
        return [ApiError("no") for _ in requests]

    assert "0 prompts were answered" in judged(observed(never)).reason


def test_too_few_models_are_said():
    for few in (observed(references=1), observed(candidates=0)):
        finding = judged(few)
        assert not finding.ran and finding.p_value is None
        assert "at least two reference models" in finding.reason
