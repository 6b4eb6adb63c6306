"""Sequences that arrive at any time give the same tokens as alone, and a known prefix is not read again."""

import dataclasses

import pytest
import torch
from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM

from stillhouse.models import Sampling
from stillhouse.models.sampling.batch import sample
from stillhouse.models.sampling.continuous import CHUNK, ContinuousSampler, LiveSequence

VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 1024,
}  # fmt: skip


@pytest.fixture(scope="module", params=["lean", "module"])
def model(request):
    torch.manual_seed(5)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)) if request.param == "lean" else GemmaForCausalLM(
        GemmaConfig(**SIZES)
    )  # fmt: skip
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)  # so that answers differ from each other
    return model.eval()


def prompt(length, seed):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(3, VOCABULARY, (length,), generator=generator).tolist())


def finish(sampler, *, limit=2000):
    drawn = []
    while sampler.busy:
        drawn += sampler.step()
        limit -= 1
        assert limit
    return drawn


def alone(model, ids, sampling, ends=frozenset()):
    return sample(model, [list(ids)], [sampling], ends=set(ends))[0].ids


SETTINGS = [
    Sampling(temperature=0, max_tokens=9),
    Sampling(temperature=1.0, seed=4, max_tokens=30),
    Sampling(temperature=0.7, top_p=0.9, seed=5, max_tokens=17),
    Sampling(temperature=1.3, top_k=20, min_p=0.02, seed=6, max_tokens=25),
]


def test_each_gets_what_it_would_get_alone_whenever_it_comes(model):
    sampler = ContinuousSampler(model, {2}, slots=2, capacity=128, kept=3)
    sequences = [LiveSequence(prompt(7 + 5 * n, n), SETTINGS[n % 4]) for n in range(8)]
    for one in sequences[:3]:
        sampler.add(one)
    drawn = [d for _ in range(3) for d in sampler.step()]
    for one in sequences[3:]:
        sampler.add(one)
    drawn += finish(sampler)
    for one in sequences:
        assert one.ids == alone(model, one.prompt, one.sampling, {2})
        own = [d for d in drawn if d.sequence is one]
        assert [d.id for d in own] == one.ids
        reasons = [d.finish_reason for d in own]
        assert reasons[:-1] == [None] * (len(own) - 1)
        assert reasons[-1] == ("stop" if one.ids[-1] == 2 else "length")


def test_a_prefix_of_an_ended_or_running_sequence_is_copied_and_changes_nothing(model):
    sampler = ContinuousSampler(model, set(), slots=3, capacity=200, kept=2)
    first = LiveSequence(prompt(40, 1), Sampling(temperature=0, max_tokens=12))
    sampler.add(first)
    finish(sampler)
    turn = (*first.prompt, *first.ids, *prompt(9, 2))
    second = LiveSequence(turn, Sampling(temperature=0, max_tokens=30))
    sampler.add(second)
    sampler.step()
    third = LiveSequence((*turn[:45], *prompt(6, 3)), Sampling(temperature=0, max_tokens=8))
    sampler.add(third)
    finish(sampler)
    assert first.cached_tokens == 0
    assert second.cached_tokens == 40 + 12 - 1  # the last token was sampled, never read
    assert third.cached_tokens == 45
    for one in (first, second, third):
        assert one.ids == alone(model, one.prompt, one.sampling)
    again = LiveSequence(first.prompt, first.sampling)  # the whole prompt is known: its last token is read
    sampler.add(again)
    finish(sampler)
    assert again.cached_tokens == 39 and again.ids == first.ids


def test_kept_sequences_make_room_for_the_newest(model):
    sampler = ContinuousSampler(model, set(), slots=1, capacity=64, kept=2)
    for seed in (1, 2, 3, 1):
        one = LiveSequence(prompt(20, seed), Sampling(temperature=0, max_tokens=2))
        sampler.add(one)
        finish(sampler)
    assert one.cached_tokens == 0  # two others replaced its prefix


def test_a_long_prompt_is_read_in_chunks_while_others_go_on(model):
    sampler = ContinuousSampler(model, set(), slots=2, capacity=1000, kept=1)
    short = LiveSequence(prompt(5, 1), Sampling(temperature=0, max_tokens=20))
    sampler.add(short)
    sampler.step()
    long = LiveSequence(prompt(2 * CHUNK + 50, 2), Sampling(temperature=0, max_tokens=4))
    sampler.add(long)
    for step in range(3):
        assert len(short.ids) == 1 + step
        sampler.step()
    assert len(long.ids) == 1 and len(short.ids) == 4
    finish(sampler)
    assert long.ids == alone(model, long.prompt, long.sampling)
    assert short.ids == alone(model, short.prompt, short.sampling)


@pytest.mark.parametrize("when", ["waiting", "reading", "running"])
def test_a_cancelled_sequence_frees_its_slot(model, when):
    sampler = ContinuousSampler(model, set(), slots=1, capacity=1000, kept=1)
    unwanted = LiveSequence(prompt(CHUNK + 10, 1), Sampling(temperature=0, max_tokens=500))
    wanted = LiveSequence(prompt(6, 2), Sampling(temperature=0, max_tokens=3))
    sampler.add(unwanted)
    sampler.add(wanted)
    for _ in range({"waiting": 0, "reading": 1, "running": 4}[when]):
        sampler.step()
    unwanted.cancelled = True
    drawn = finish(sampler, limit=6)
    assert wanted.ids == alone(model, wanted.prompt, wanted.sampling)
    assert all(d.sequence is wanted for d in drawn)


def test_scores_are_the_model_s_own_log_probabilities(model):
    ids = prompt(30, 7)
    for first in (
        None,
        ids,
    ):  # the second could copy the first's prefix, but reads it again for its log-probabilities
        sampler = ContinuousSampler(model, set(), slots=2, capacity=100, kept=2)
        if first:
            sampler.add(LiveSequence(first, Sampling(temperature=0, max_tokens=2)))
            finish(sampler)
        one = LiveSequence(ids, SETTINGS[2], top_logprobs=3, score_prompt=True)
        sampler.add(one)
        drawn = finish(sampler)
        with torch.inference_mode():
            logp_TV = model(torch.tensor([[*ids, *one.ids]])).logits[0].log_softmax(-1)
        scores = [*one.prompt_logprobs, *(d.logprob for d in drawn if d.sequence is one)]
        assert [score.id for score in scores] == [*ids[1:], *one.ids]
        for position, score in enumerate(scores):
            assert score.logprob == pytest.approx(logp_TV[position, score.id].item(), abs=2e-4)
            values, _ = logp_TV[position].topk(3)
            assert [value for _, value in score.top] == pytest.approx(values.tolist(), abs=2e-4)
            assert logp_TV[position, score.top[0][0]].item() == pytest.approx(values[0].item(), abs=2e-4)


def test_prompts_that_cannot_fit_are_the_caller_s_mistake(model):
    sampler = ContinuousSampler(model, set(), slots=1, capacity=20, kept=0)
    with pytest.raises(AssertionError):
        sampler.add(LiveSequence(prompt(15, 1), Sampling(max_tokens=6)))
    one = LiveSequence(prompt(15, 1), dataclasses.replace(SETTINGS[0], max_tokens=5))
    sampler.add(one)
    finish(sampler)
    assert one.ids == alone(model, one.prompt, one.sampling)
