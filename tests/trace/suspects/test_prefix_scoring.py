"""Scores of texts with shared prompts, against one forward pass for each text alone."""

import itertools

import numpy as np
import pytest
import torch
import transformers

from stillhouse.models import load_weights
from stillhouse.trace.suspects.local import TorchSuspect
from stillhouse.trace.suspects.prefix_scoring import PrefixScorer, group_by_prompt, make_batches

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))


def sliding():
    config = transformers.MistralConfig(**SMALL, sliding_window=8)
    return transformers.MistralForCausalLM(config)


def longrope():
    rotation = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 32,
        "factor": 8.0,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, rope_parameters=rotation))


def learned_positions():
    config = transformers.GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=256)
    return transformers.GPT2LMHeadModel(config)


def recurrent():
    config = transformers.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=8)
    return transformers.MambaForCausalLM(config)


def jobs(rng, *, families=12, texts=4):
    """Prompts of 0 to 40 tokens, texts of 1 to 30; some equal, one prompt twice."""
    made = []
    for number in range(families):
        prompt = tuple(rng.integers(3, 97, size=[0, 1, 5, 9, 20, 21, 22, 40][number % 8]).tolist())
        own = [tuple(rng.integers(3, 97, size=rng.integers(1, 30)).tolist()) for _ in range(texts)]
        made += [(prompt, text) for text in [*own, own[0]]]
    return [made[i] for i in rng.permutation(len(made))]


def alone(model, prompt, text):
    """The log-probabilities of one text by the obvious method: a full forward pass."""
    ids = torch.tensor([[*prompt, *text]])
    with torch.inference_mode():
        logp_TV = model(ids).logits[0].float().log_softmax(-1)
    first = len(prompt) or 1
    return [logp_TV[t - 1, ids[0, t]].item() for t in range(first, ids.shape[1])]


@pytest.mark.parametrize("make", [llama, sliding, longrope, learned_positions, recurrent])
def test_scores_are_those_of_each_text_alone(make):
    torch.manual_seed(1)
    model = make().eval()
    scorer = PrefixScorer(model)
    asked = jobs(np.random.default_rng(2))
    found = scorer.token_logps(asked)
    for (prompt, text), logps in zip(asked, found, strict=True):
        assert logps.tolist() == pytest.approx(alone(model, prompt, text), abs=2e-4)
        assert len(logps) == len(text) - (not prompt)
    if make is llama:
        assert scorer._shares is True, "keys and values of a Llama can be shared"


def test_equal_texts_have_equal_scores_to_the_last_bit():
    torch.manual_seed(1)
    asked = jobs(np.random.default_rng(3))
    found = PrefixScorer(llama().eval()).token_logps(asked)
    seen = {}
    for job, logps in zip(asked, found, strict=True):
        assert seen.setdefault(job, logps).tobytes() == logps.tobytes()
    assert len(seen) < len(asked)


def test_a_prompt_is_read_once_for_all_its_texts(monkeypatch):
    model = llama().eval()
    scorer = PrefixScorer(model)
    rng = np.random.default_rng(4)
    prompts = [tuple(rng.integers(3, 97, size=100).tolist()) for _ in range(6)]
    asked = [(prompt, tuple(rng.integers(3, 97, size=10).tolist())) for prompt in prompts for _ in range(5)]
    scorer.token_logps(asked)  # the first call compares
    read = []
    decoder = model.get_decoder()
    forward = decoder.forward

    def counting(*args, **kwargs):
        read.append(kwargs["input_ids"].numel())
        return forward(*args, **kwargs)

    monkeypatch.setattr(decoder, "forward", counting)
    scorer.token_logps(asked)
    assert sum(read) <= 6 * 100 + 30 * 10
    assert sum(read) < 0.3 * sum(len(prompt) + len(text) for prompt, text in asked)


def test_batches_are_bounded_and_lose_nothing():
    asked = jobs(np.random.default_rng(5), families=64)
    one_prompt = tuple(range(3, 23))
    asked += [((), (5, 6, *rest)) for rest in itertools.product(range(3, 9), repeat=3)]
    asked += [(one_prompt, (5, 6, *rest)) for rest in itertools.product(range(3, 9), repeat=3)]
    groups = group_by_prompt(asked)
    found = list(make_batches(groups, 300))
    scored = [index for index, (prompt, text) in enumerate(asked) if len(text) > (not prompt)]
    assert sorted(job_indices(found)) == scored == sorted(job_indices([groups]))
    for batch in found:
        rows = sum(len(group.texts) for group in batch)
        assert rows * max(group.width for group in batch) <= 300 or rows == 1
        assert len({group.is_worth_sharing for group in batch}) == 1


def job_indices(batches):
    """Indices of all jobs in the batches."""
    texts = [indices for batch in batches for group in batch for indices in group.texts.values()]
    return [index for indices in texts for index in indices]


def test_a_suspect_scores_texts_after_its_chat_template(tiny_teacher):
    suspect = TorchSuspect(str(tiny_teacher))
    prompt = [{"role": "user", "content": "what does the still keep and what does it take apart"}]
    texts = ["it keeps what matters", "it takes a spirit apart", "it keeps what matters"]
    weights = load_weights(str(tiny_teacher), dtype=str(suspect.weights.model.dtype).removeprefix("torch."))
    ids = weights.template.encode_prompt(weights.tokenizer, prompt)
    scored = suspect.loglik([prompt] * 3, texts)
    for text, one in zip(texts, scored, strict=True):
        text_ids = weights.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert one.tokens == len(text_ids) == len(one.token_logps)
        assert one.loglik == pytest.approx(sum(alone(weights.model, ids, text_ids)), rel=0.02)
    assert scored[0].loglik == scored[2].loglik
    suspect.close()


def test_what_does_not_fit_into_the_context_is_cut_alike_or_missing(tiny_teacher):
    suspect = TorchSuspect(str(tiny_teacher))
    long = "every question has an answer " * 200
    whole, cut, none = suspect.loglik(
        [[], [], [{"role": "user", "content": long}]], ["the still", long, "the still"]
    )
    assert whole.tokens > 0 and cut.tokens == suspect.context_length - 1
    assert none is None
    suspect.close()


def test_a_suspect_goes_on_from_a_beginning(tiny_teacher):
    suspect = TorchSuspect(str(tiny_teacher))
    prompt = [{"role": "user", "content": "the still"}]
    said = suspect.continuations([prompt, prompt, []], ["it takes", "it takes", "the"], [6, 6, 0])
    assert said[0] == said[1] and len(said[0]) > 0
    assert said[2] is None
    ids = suspect.weights.template.encode_prompt(suspect.weights.tokenizer, prompt)
    ids += suspect.weights.tokenizer("it takes", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        for _ in range(6):
            ids.append(suspect.weights.model(torch.tensor([ids])).logits[0, -1].argmax().item())
    assert said[0] == suspect.weights.tokenizer.decode(ids[-6:], skip_special_tokens=True)
    suspect.close()
