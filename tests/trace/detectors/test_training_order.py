"""Training order: exact under a shuffle, found in who was trained in it and in its children."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from lineages import new_model, texts, tokenizer, trained
from scipy import stats

from stillhouse.trace.detectors import training_order
from stillhouse.trace.detectors.training_order import concordant_log_p, concordant_pairs


@dataclass
class Answer:
    tokens: int
    loglik: float


class Tiny:
    """Log-likelihoods of a small transformer."""

    def __init__(self, model):
        self.model = model

    @torch.no_grad()
    def loglik(self, prompts, texts):
        ids = torch.tensor([tokenizer().encode(text) for text in texts])
        logps = self.model(ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        return [Answer(ids.shape[1] - 1, float(row.sum())) for row in logps]


class Given:
    def __init__(self, scores):
        self.scores = scores

    def loglik(self, prompts, texts):
        return [Answer(1, self.scores[text]) for text in texts]


def judged(scores, reference=None):
    names = [f"text {number}" for number in range(len(scores))]
    transcript = training_order.observe(
        Given(dict(zip(names, scores, strict=True))),
        names,
        reference=None if reference is None else Given(dict(zip(names, reference, strict=True))),
    )
    return training_order.judge(transcript, {"seed": 0})


def test_pairs_and_their_distribution_are_those_of_all_orders_counted():
    counts = []
    for order in itertools.permutations(range(6)):
        count = sum(a < b for a, b in itertools.combinations(order, 2))
        assert concordant_pairs(np.array(order, float), 0) == count
        counts.append(count)
    for count in range(16):
        share = np.mean(np.array(counts) >= count)
        assert math.exp(concordant_log_p(count, 6)) == pytest.approx(share, rel=1e-9)


def test_the_p_value_is_scipys_exact_one():
    scores = np.random.default_rng(2).normal(size=40) + np.linspace(0, 0.8, 40)
    expected = stats.kendalltau(np.arange(40), scores, alternative="greater", method="exact").pvalue
    assert judged(scores).p_value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("z", [3.0, 6.0, 12.0])
def test_the_bound_is_never_too_small_and_never_far_off(z):
    n = 2000
    spread = math.sqrt(n * (n - 1) * (2 * n + 5) / 72)
    log_p = concordant_log_p(round(n * (n - 1) / 4 + z * spread), n)
    assert log_p > stats.norm.logsf(z)
    assert log_p < stats.norm.logsf(z) + math.log(4 * z)


def test_the_most_and_the_least_that_can_be():
    assert judged(np.arange(300.0)).effect["log10_p"] == pytest.approx(-math.lgamma(301) / math.log(10))
    assert judged(-np.arange(300.0)).p_value == pytest.approx(1.0)
    assert judged(np.arange(300.0), reference=np.arange(300.0)).p_value > 0.001  # nothing but ties


def test_size_under_a_shuffle():
    generator = np.random.default_rng(5)
    scores = generator.normal(size=30)
    ps = np.array([judged(generator.permutation(scores)).p_value for _ in range(400)])
    for alpha in (0.5, 0.1, 0.05, 0.01):
        assert stats.binom.sf((ps <= alpha).sum() - 1, len(ps), alpha) > 1e-3, alpha
    assert (ps <= 0.2).mean() > 0.13


def test_a_model_and_its_fine_tune_remember_their_order_and_others_do_not():
    data = texts(11, n=400, length=16)
    ours = trained(new_model(0), data, steps=100, rate=2e-2, in_order=True)
    child = trained(ours, texts(12, n=64, length=16), steps=5, rate=1e-3)
    same_data = trained(new_model(1), data, steps=100, rate=2e-2)
    reference = Tiny(trained(new_model(2), texts(13, n=400, length=16), steps=100, rate=2e-2))

    def finding(model):
        return training_order.judge(
            training_order.observe(Tiny(model), data, reference=reference), {"seed": 0}
        )

    assert finding(ours).p_value < 1e-4
    assert finding(child).p_value < 1e-3
    assert finding(same_data).p_value > 0.01


def test_what_has_no_score_is_left_out_and_said():
    scores = [*np.arange(10.0), float("nan")]
    finding = judged(scores)
    assert finding.n == 10
    assert next(a for a in finding.assumptions if "scored" in a.text).held is False
    assert "log-probabilities" in judged([float("-inf"), 1.0]).reason
