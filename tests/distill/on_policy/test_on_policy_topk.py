"""On-policy top-k rows of the teacher, against both models' own logits in float64."""

from __future__ import annotations

from dataclasses import replace

import divergence_oracles as oracle
import numpy as np
import pytest
import torch
from test_on_policy import END, REVERSE, TAUGHT, TRAIN, lines, own_text_kl, prompts, run
from tiny_training import VOCABULARY, llama

from stillhouse.distill.data.documents import Document
from stillhouse.distill.loss.teacher_rows import TopKRows
from stillhouse.distill.on_policy.learner import OnPolicyLearner
from stillhouse.distill.on_policy.rollouts import Rollout, RolloutBatch
from stillhouse.distill.targets.formats import TopKFormat
from stillhouse.distill.targets.teacher_signal import cache_targets
from stillhouse.errors import RecipeError
from stillhouse.recipe import Objective

K = 5


def a_round() -> RolloutBatch:
    """Two answers to each of two questions, of different lengths; the teacher reads a longer prompt."""
    asked = prompts(2, teacher_prefix=(5, 9))
    draws = np.random.default_rng(1)
    rollouts = [
        Rollout(prompt, draws.integers(2, VOCABULARY, 3 + n).tolist(), [-1.0] * (3 + n), "stop")
        for prompt in asked
        for n in range(2)
    ]
    return RolloutBatch(rollouts, torch.zeros(2, 2), 0)


def teacher_documents(samples: RolloutBatch) -> list[Document]:
    return [document for document, _ in samples.teacher_documents(0).values()]


def other_teacher(vocab_size: int = VOCABULARY):
    teacher = llama(vocab_size=vocab_size)
    torch.manual_seed(9)
    for parameter in teacher.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return teacher


def learned(teacher, objective: Objective) -> tuple[dict, dict]:
    """The metrics of a round, and its gradient (the step has a learning rate of 0)."""
    student = llama()
    learner = OnPolicyLearner(
        student, [teacher], objective, replace(TAUGHT, prompts=2, samples=2), TRAIN, None
    )
    gradients = {}

    def keep(*_):
        gradients.update(
            {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
        )
        return torch.tensor(1.0)

    learner.clip = keep
    return learner.learn(a_round(), [0.0]), gradients


def logits(model, documents: list[Document]) -> list[list[float]]:
    rows = []
    for document in documents:
        ids = torch.from_numpy(document.ids.astype(np.int64))[None]
        with torch.no_grad():
            rows += model.double()(input_ids=ids).logits[0, document.predicting].tolist()
    return rows


@pytest.mark.parametrize("vocab_size", [VOCABULARY, VOCABULARY + 6])
@pytest.mark.parametrize("kind", oracle.KINDS)
def test_it_is_the_divergence_between_merged_distributions(kind, vocab_size):
    objective = Objective(kind=kind, targets="topk", top_k=K, temperature=1.5)
    teacher = other_teacher(vocab_size)
    found = learned(teacher, objective)[0]["teacher"]
    samples = a_round()
    expected = []
    pairs = zip(
        logits(llama(), samples.documents()), logits(teacher, teacher_documents(samples)), strict=True
    )
    for s, t in pairs:
        p, q = (oracle.probabilities(side[:VOCABULARY], 1.5) for side in (t, s))
        listed = sorted(range(VOCABULARY), key=lambda i: -p[i])[:K]
        expected.append(
            1.5**2 * oracle.between(oracle.merged(p, listed), oracle.merged(q, listed), objective)
        )
    assert len(expected) == 14
    assert found == pytest.approx(np.mean(expected), rel=1e-4)


def test_all_ids_but_one_are_the_whole_distribution():
    """A tail of one id merges nothing: loss and gradient are those without `topk`."""
    teacher = other_teacher()
    whole, gradients = learned(teacher, Objective(kind="jsd", beta=0.3))
    listed, same = learned(teacher, Objective(kind="jsd", beta=0.3, targets="topk", top_k=VOCABULARY - 1))
    assert listed["teacher"] == pytest.approx(whole["teacher"], rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, rtol=1e-3, atol=1e-5)


def test_it_is_what_offline_would_cache(tmp_path):
    """The same documents cached offline: the same ids, and log-probabilities but for float16."""
    teacher, objective = other_teacher(), Objective(targets="topk", top_k=K, temperature=1.5)
    documents = teacher_documents(a_round())
    signal = cache_targets(teacher, documents, objective, tmp_path, seed=0, dtype="float32")
    parts = [(i, d.predicting) for i, d in enumerate(documents)]
    cached = signal.rows(parts, torch.device("cpu"))
    runner = cache_targets(teacher, documents, Objective(targets="online"), tmp_path, seed=0, dtype="float32")
    dense = runner.rows(parts, torch.device("cpu"))
    at_once = TopKFormat(objective, VOCABULARY).rows(dense.hidden_ND, dense.head)  # pyright: ignore
    assert isinstance(cached, TopKRows)
    assert torch.equal(cached.ids_NK, at_once.ids_NK)
    torch.testing.assert_close(cached.logp_NK1, at_once.logp_NK1, rtol=2**-10, atol=1e-3)


def test_a_student_comes_near_its_teacher_by_it(tmp_path):
    student, teacher = llama(), other_teacher()
    before = own_text_kl(student, teacher)
    objective = replace(REVERSE, targets="topk", top_k=16)
    run(student, tmp_path, teachers=[teacher], settings=TAUGHT, objective=objective, reward_function=None)
    assert own_text_kl(student, teacher) < 0.7 * before
    assert lines(tmp_path)[-1]["teacher"] < lines(tmp_path)[0]["teacher"]


def test_more_ids_than_there_are_is_refused(tmp_path):
    objective = replace(REVERSE, targets="topk", top_k=VOCABULARY)
    with pytest.raises(RecipeError, match="top_k: 64 is not below"):
        run(
            llama(),
            tmp_path,
            teachers=[llama()],
            settings=TAUGHT,
            objective=objective,
            reward_function=None,
            end_ids={END},
        )
