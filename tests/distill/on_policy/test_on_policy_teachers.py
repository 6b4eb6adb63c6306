"""The on-policy loop with several teachers, routed by prompt or averaged; against float64 by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import divergence_oracles as oracle
import numpy as np
import pytest
import torch
from test_ensemble import teachers
from test_on_policy import REVERSE, TAUGHT, TRAIN, lines, own_text_kl, prompts, run
from test_on_policy_topk import other_teacher
from tiny_training import VOCABULARY, llama

from stillhouse.distill.on_policy.learner import OnPolicyLearner
from stillhouse.distill.on_policy.rollouts import Rollout, RolloutBatch, TeacherPrompt
from stillhouse.recipe import Objective


def routed(prompt, number: int):
    return replace(prompt, teacher_prompts=(TeacherPrompt(number, 1.0, prompt.ids),))


def averaged(prompt, first: float, prefix: tuple[int, ...] = ()):
    teacher_prompts = (
        TeacherPrompt(0, first, prompt.ids),
        TeacherPrompt(1, 1 - first, [*prefix, *prompt.ids]),
    )
    return replace(prompt, teacher_prompts=teacher_prompts)


def round_of(asked) -> RolloutBatch:
    draws = np.random.default_rng(1)
    rollouts = [
        Rollout(prompt, draws.integers(2, VOCABULARY, 3 + n).tolist(), [-1.0] * (3 + n), "stop")
        for prompt in asked
        for n in range(2)
    ]
    return RolloutBatch(rollouts, torch.zeros(len(asked), 2), 0)


def probabilities(model, prompt: list[int], answer: list[int]) -> list[list[float]]:
    with torch.no_grad():
        logits = model.double()(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
    own = logits[len(prompt) - 1 : -1, :VOCABULARY].tolist()
    return [oracle.probabilities(row) for row in own]


@pytest.mark.parametrize("kind", oracle.KINDS)
@pytest.mark.parametrize("how", ["routed", "averaged", "both", "topk"])
def test_the_divergence_is_from_who_is_responsible(kind, how):
    one, two = prompts(2)
    asked = {
        "routed": [routed(one, 1), routed(two, 0)],
        "averaged": [averaged(one, 0.3, (5, 9)), averaged(two, 0.3, (7,))],
        "both": [averaged(one, 0.3), routed(two, 2)],
        "topk": [routed(one, 1), routed(two, 0)],
    }[how]
    models = [*teachers(), other_teacher()]
    objective = Objective(kind=kind, targets="topk" if how == "topk" else "hidden", top_k=5)
    settings = replace(TAUGHT, prompts=2, samples=2)
    learner = OnPolicyLearner(llama(), models, objective, settings, TRAIN, None)
    found = learner.learn(round_of(asked), [0.0])["teacher"]
    expected = []
    for rollout in round_of(asked).rollouts:
        q = probabilities(llama(), rollout.prompt.ids, rollout.ids)
        said = [
            (r.weight, probabilities(models[r.teacher], r.ids, rollout.ids))
            for r in rollout.prompt.teacher_prompts
        ]
        for t, own in enumerate(q):
            p = [math.fsum(w * rows[t][i] for w, rows in said) for i in range(VOCABULARY)]
            if how == "topk":
                listed = sorted(range(VOCABULARY), key=lambda i: -p[i])[:5]
                p, own = oracle.merged(p, listed), oracle.merged(own, listed)
            expected.append(oracle.between(p, own, objective))
    assert len(expected) == 14
    assert found == pytest.approx(np.mean(expected), rel=1e-3)


def test_the_student_comes_near_both_teachers_of_its_questions(tmp_path):
    """Half of the questions are taught by a teacher that the student already is, half by another."""
    student, other = llama(), other_teacher()
    before = own_text_kl(student, other)
    asked = [routed(prompt, number % 2) for number, prompt in enumerate(prompts())]
    run(
        student,
        tmp_path,
        prompts=asked,
        teachers=[llama(), other],
        settings=replace(TAUGHT, prompts=8),
        objective=REVERSE,
        reward_function=None,
    )
    found = [line["teacher"] for line in lines(tmp_path)]
    assert np.mean(found[-5:]) < 0.7 * np.mean(found[:5])
    assert own_text_kl(student, other) < before
