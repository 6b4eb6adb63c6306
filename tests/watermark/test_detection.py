"""Detection: size on fixed text, tails, e-values, and power on text from our samplers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM

from stillhouse.models import Sampling
from stillhouse.models.sampling.batch import sample
from stillhouse.models.sampling.continuous import ContinuousSampler, LiveSequence
from stillhouse.stats import (
    binomial_log_e,
    binomial_upper,
    e_from_log,
    gamma_log_e,
    gamma_upper,
)
from stillhouse.watermark import Mark, detect, detection_from_scores, distinct_pairs, interval, text_pairs

SCHEMES = ("kgw", "gumbel", "tournament")
KEY = bytes(range(32))


def chances(level: float, tries: int) -> tuple[float, float]:
    """Bounds of a count at rate ``level``, exceeded once in 10,000 times."""
    return tuple(stats.binom.ppf([0.00005, 0.99995], tries, level))


def test_pairs_are_those_of_a_loop_over_tokens_and_count_once():
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 4, size).tolist() for size in (0, 1, 2, 3, 40, 200)]
    slow = [(tuple(t[i - 2 : i]), t[i]) for t in texts for i in range(2, len(t))]
    every = text_pairs(texts, 2)
    assert [(tuple(w), t) for w, t in zip(every.windows_NW.tolist(), every.tokens_N, strict=True)] == slow
    once = distinct_pairs(every)
    found = [(tuple(w), t) for w, t in zip(once.windows_NW.tolist(), once.tokens_N, strict=True)]
    assert found == list(dict.fromkeys(slow))
    assert once.repeated == len(slow) - len(found)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_on_fixed_text_the_p_value_is_uniform_over_keys_however_repetitive_the_text(scheme):
    """2,000 keys on one text that repeats itself; each bound fails by chance once in 10,000 seeds."""
    rng = np.random.default_rng(1)
    phrase = rng.integers(0, 500, 60).tolist()
    text = phrase * 30 + rng.integers(0, 500, 300).tolist()
    found = [detect(Mark(rng.bytes(32), scheme), [text]) for _ in range(2000)]
    p_values = np.array([one.p_value for one in found])
    for level in (0.5, 0.05, 0.01):
        _, most = chances(level, len(p_values))
        assert (p_values <= level).sum() <= most
    least, _ = chances(0.05, len(p_values))
    slack = {"kgw": 0.8, "gumbel": 1.0, "tournament": 0.9}[scheme]  # a count cannot hit every level
    assert (p_values <= 0.05).sum() >= slack * least
    e_values = np.array([one.e_value for one in found])
    assert e_values.mean() <= 1 + 4 * e_values.std() / len(e_values) ** 0.5
    assert (e_values >= 20).sum() <= chances(1 / 20, len(e_values))[1]


def test_counting_repetitions_would_have_made_chance_look_like_a_mark():
    """The purpose of distinct_pairs: without it the same test rejects far too often."""
    rng = np.random.default_rng(1)
    text = rng.integers(0, 500, 60).tolist() * 30
    wrong = 0
    for _ in range(300):
        mark = Mark(rng.bytes(32))
        every = text_pairs([text], mark.window)
        wrong += detection_from_scores(mark, mark.scores(every.windows_NW, every.tokens_N)).p_value <= 0.01
    assert wrong > 30


@pytest.mark.parametrize(("k", "n", "p"), [(0, 10, 0.25), (3, 10, 0.25), (10, 10, 0.25), (120, 300, 0.5)])
def test_the_binomial_tail_is_the_sum_of_its_terms(k, n, p):
    from fractions import Fraction
    from math import comb

    exact = Fraction(p)
    total = sum(comb(n, j) * exact**j * (1 - exact) ** (n - j) for j in range(k, n + 1))
    assert float(binomial_upper(k, n, p)) == pytest.approx(float(total), rel=1e-12)


@pytest.mark.parametrize(("total", "n"), [(0.0, 1), (2.5, 1), (12.0, 7), (150.0, 100)])
def test_the_gamma_tail_is_the_chance_of_fewer_than_n_arrivals(total, n):
    """A sum of n waiting times exceeds t where a Poisson process has fewer than n arrivals by t."""
    assert float(gamma_upper(total, n)) == pytest.approx(stats.poisson.cdf(n - 1, total), rel=1e-12)


def test_tails_are_never_zero_and_nothing_counted_is_no_evidence():
    assert 0 < float(binomial_upper(10_000, 10_000, 0.25)) < 1e-300
    assert 0 < float(gamma_upper(1e6, 100)) < 1e-300
    assert np.isfinite(e_from_log(1e6))
    empty = detect(Mark(KEY), [[1, 2]])
    assert (empty.pairs, empty.p_value, empty.e_value) == (0, 1.0, pytest.approx(1.0))


@pytest.mark.parametrize(("n", "p"), [(1, 0.25), (30, 0.25), (200, 0.5)])
def test_the_expectation_of_the_e_value_is_one(n, p):
    """Over all outcomes of the binomial, and by quadrature over the gamma."""
    k = np.arange(n + 1)
    assert (stats.binom.pmf(k, n, p) * np.exp(binomial_log_e(k, n, p))).sum() == pytest.approx(1, rel=1e-9)
    bets = 1 + 2.0 ** (3 - np.arange(1, 13))
    assert np.exp(gamma_log_e(3.7, 2)) == pytest.approx(
        np.mean(stats.gamma.pdf(3.7, 2, scale=bets) / stats.gamma.pdf(3.7, 2)), rel=1e-9
    )


def test_an_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(4)
    for scheme, draw in (
        ("kgw", lambda: (rng.random(200) < 0.4).astype(float)),
        ("gumbel", lambda: rng.exponential(0.4, 200)),
        ("tournament", lambda: rng.binomial(30, 0.4, 200).astype(float)),
    ):
        mark = Mark(KEY, scheme)
        limits = [interval(mark, draw(), 0.9) for _ in range(1000)]
        missed = sum(not low <= 0.4 <= high for low, high in limits)
        assert missed <= chances(0.1, 1000)[1]
        assert missed >= 0.6 * 100


@pytest.fixture(scope="module")
def model():
    """A random Llama whose next token is uncertain by some nats."""
    torch.manual_seed(5)
    sizes = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.4)).eval()


SETTINGS = {
    "plain": Sampling(max_tokens=60),
    "cut": Sampling(max_tokens=60, temperature=0.9, top_p=0.95, top_k=100, min_p=0.001),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", list(SETTINGS))
def test_what_the_sampler_marks_is_found_and_what_it_does_not_mark_is_not(model, scheme, kind):
    mark, prompts = Mark(KEY, scheme), [[n + 3] for n in range(8)]
    settings = [Sampling(**{**vars(SETTINGS[kind]), "seed": n}) for n in range(8)]
    marked = [one.ids for one in sample(model, prompts, settings, ends=set(), markers=[mark] * 8)]
    plain = [one.ids for one in sample(model, prompts, settings, ends=set())]
    assert detect(mark, marked).p_value < 1e-12
    assert detect(mark, marked).e_value > 1e9
    for found in (detect(mark, plain), detect(Mark(bytes(32), scheme), marked)):
        assert found.p_value > 1e-4
        assert found.e_value < 100


@pytest.mark.parametrize("kind", list(SETTINGS))
def test_a_mark_leaves_its_neighbours_and_the_first_tokens_alone(model, kind):
    mark, prompts = Mark(KEY, "gumbel"), [[7, 8], [9], [7, 8]]
    settings = [Sampling(**{**vars(SETTINGS[kind]), "seed": n}) for n in range(3)]
    plain = sample(model, prompts, settings, ends=set())
    mixed = sample(model, prompts, settings, ends=set(), markers=[None, mark, None])
    assert [plain[0].ids, plain[2].ids] == [mixed[0].ids, mixed[2].ids]
    other = sample(model, prompts[1:2], settings[1:2], ends=set(), markers=[Mark(bytes(32), "gumbel")])[0]
    assert mixed[1].ids[:2] == other.ids[:2]
    assert mixed[1].ids[2:] != other.ids[2:]


def test_a_marked_token_is_never_one_that_the_settings_leave_out(model):
    prompts, mark = [[n + 3] for n in range(6)], Mark(KEY, delta=30.0)
    settings = [Sampling(max_tokens=30, top_k=5, seed=n) for n in range(6)]
    answers = sample(model, prompts, settings, ends=set(), markers=[mark] * 6)
    for prompt, answer in zip(prompts, answers, strict=True):
        logits_TV = model(torch.tensor([prompt + answer.ids])).logits[0, :-1]
        ranks_T = (logits_TV > logits_TV.gather(1, torch.tensor([answer.ids]).T)).sum(1)
        assert ranks_T.max() < 5
        own = logits_TV.log_softmax(-1).gather(1, torch.tensor([answer.ids]).T)[:, 0]
        np.testing.assert_allclose(answer.logp, own.detach(), atol=1e-4)  # the model's own, without the mark


def test_the_server_sampler_marks_the_same_tokens(model):
    mark, sampling = Mark(KEY, "tournament"), Sampling(max_tokens=40, temperature=0.8, seed=3)
    live = LiveSequence((5, 6, 7), sampling, marker=mark)
    sampler = ContinuousSampler(model, set(), slots=2, capacity=64, kept=1)
    sampler.add(live)
    sampler.add(LiveSequence((8, 9), Sampling(max_tokens=20, seed=1)))
    while sampler.busy:
        sampler.step()
    assert live.ids == sample(model, [[5, 6, 7]], [sampling], ends=set(), markers=[mark])[0].ids


def test_greedy_answers_are_not_marked(model):
    greedy = Sampling(temperature=0, max_tokens=20)
    plain, marked = (sample(model, [[4]], [greedy], ends=set(), markers=m)[0].ids for m in ((), [Mark(KEY)]))
    assert plain == marked
