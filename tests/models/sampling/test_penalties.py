"""Penalties and biases equal those of transformers and the formula of the OpenAI API."""

from collections import Counter

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from stillhouse.models import Sampling, load_weights
from stillhouse.models.sampling.continuous import ContinuousSampler, LiveSequence
from stillhouse.models.sampling.penalties import LogitPenalties

PROMPT, ANSWER = (1, 2, 3, 2), [7, 2, 7, 7]


def test_repetition_is_that_of_transformers():
    logits = torch.randn(1, 20, generator=torch.Generator().manual_seed(0))
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[*PROMPT, *ANSWER]]), logits.clone())
    LogitPenalties(repetition=1.7).apply(logits[0], PROMPT, ANSWER)
    assert torch.allclose(logits, expected)


def test_presence_frequency_and_bias_follow_the_api_s_formula():
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, over the answer; the bias is added."""
    logits = torch.randn(20, generator=torch.Generator().manual_seed(1))
    penalties = LogitPenalties(presence=0.6, frequency=-0.25, bias=((3, 5.0), (7, -100.0)))
    counts, expected = Counter(ANSWER), logits.tolist()
    for token in range(20):
        expected[token] -= counts[token] * -0.25 + (0.6 if counts[token] else 0)
    expected[3] += 5
    expected[7] -= 100
    penalties.apply(logits, PROMPT, ANSWER)
    assert logits.tolist() == pytest.approx(expected, abs=1e-5)


def test_the_sampler_applies_them_to_their_own_sequence_alone(tiny_teacher):
    weights = load_weights(str(tiny_teacher))
    sampler = ContinuousSampler(weights.model, set(), slots=3, capacity=100, kept=1)
    greedy = Sampling(temperature=0, max_tokens=30)
    plain, strong, steered = (
        LiveSequence(PROMPT, greedy, top_logprobs=0, penalties=penalties)
        for penalties in (
            LogitPenalties(),
            LogitPenalties(frequency=2.0, presence=2.0, repetition=5.0),
            LogitPenalties(bias=((9, 100.0),)),
        )
    )
    for sequence in (plain, strong, steered):
        sampler.add(sequence)
    scores = {id(sequence): [] for sequence in (plain, strong, steered)}
    while sampler.busy:
        for drawn in sampler.step():
            scores[id(drawn.sequence)].append(drawn.logprob.logprob)
    assert steered.ids == [9] * 30
    assert len(set(strong.ids)) > len(set(plain.ids))
    # Log-probabilities stay the model's own.
    for sequence in (plain, strong, steered):
        ids = torch.tensor([[*PROMPT, *sequence.ids]])
        with torch.inference_mode():
            logp = weights.model(ids).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
        own = logp.gather(1, torch.tensor(sequence.ids)[:, None])[:, 0].tolist()
        assert scores[id(sequence)] == pytest.approx(own, abs=1e-3)
