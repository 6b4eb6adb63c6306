"""The batched sampler against transformers.generate, a simple nucleus, and the distribution itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from stillhouse.models import load_weights
from stillhouse.models.sampling.batch import draw, sample
from stillhouse.models.sampling.fast_decoder import FastDecoder, fast_decoder
from stillhouse.models.sampling.kv_cache import KeyValues
from stillhouse.models.types import Sampling

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "eos_token_id": 5,
    "pad_token_id": 0,
}
PROMPTS = [[7, 8, 9], [11], [12, 13, 14, 15, 16, 17, 18], [20, 21], [30, 31, 32, 33], [40]]


def tiny(kind: str):
    torch.manual_seed(3)
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.4))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8, initializer_range=0.4))
    return model.eval()


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_greedy_equals_generate_of_each_prompt_alone(kind):
    model = tiny(kind)
    drawn = sample(model, PROMPTS, [Sampling(temperature=0, max_tokens=40)] * len(PROMPTS), ends={5})
    for prompt, answer in zip(PROMPTS, drawn, strict=True):
        ids = torch.tensor([prompt])
        alone = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)[
            0, len(prompt) :
        ]
        assert answer.ids == alone.tolist()
        assert answer.finish_reason == ("stop" if answer.ids[-1] == 5 else "length")


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_halves_are_multiplied_in_float32_where_the_processor_only_emulates_them(kind, half, monkeypatch):
    """The oracle is generate on a float32 model of the same rounded weights, each prompt alone."""
    monkeypatch.setattr("stillhouse.models.sampling.fused_linear.cpu_has_bfloat16", lambda: False)
    rounded = tiny(kind).to(half)
    memory = KeyValues(SIZES["num_hidden_layers"], len(PROMPTS), 64)
    with torch.inference_mode():
        decoder = fast_decoder(rounded, memory, PROMPTS[2])
        assert decoder is not None and decoder.prefill(PROMPTS[:1], [0]).dtype == torch.float32
    drawn = sample(rounded, PROMPTS, [Sampling(temperature=0, max_tokens=40)] * len(PROMPTS), ends={5})
    exact = tiny(kind).to(half).float()
    for prompt, answer in zip(PROMPTS, drawn, strict=True):
        ids = torch.tensor([prompt])
        alone = exact.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
        assert answer.ids == alone[0, len(prompt) :].tolist()


def test_a_draw_depends_on_its_own_seed_and_not_on_the_batch():
    model = tiny("llama")
    settings = [Sampling(max_tokens=3 + 4 * n, seed=n) for n in range(len(PROMPTS))]
    together = sample(model, PROMPTS, settings, ends={5})
    backwards = sample(model, PROMPTS[::-1], settings[::-1], ends={5})[::-1]
    alone = [sample(model, [p], [s], ends={5})[0] for p, s in zip(PROMPTS, settings, strict=True)]
    for answers in (backwards, alone):
        assert [(a.ids, a.finish_reason) for a in answers] == [(a.ids, a.finish_reason) for a in together]
    assert sample(model, PROMPTS[:1], [Sampling(max_tokens=40, seed=99)], ends={5})[0].ids != together[0].ids
    assert all(len(answer.ids) <= s.max_tokens for answer, s in zip(together, settings, strict=True))


def test_draws_follow_the_tempered_distribution():
    """Chi-square goodness of fit; fails by chance once in 10,000 seeds (this one is fixed)."""
    logits = torch.tensor([1.0, 0.2, -0.5, 2.0, -1.5, 0.0])
    count = 20_000
    uniforms = torch.from_numpy(np.random.default_rng(0).random(count))
    tokens = draw(logits.expand(count, -1), [Sampling(temperature=0.7)] * count, uniforms)
    expected = np.exp(logits.double().numpy() / 0.7)
    expected *= count / expected.sum()
    assert stats.chisquare(np.bincount(tokens.numpy(), minlength=6), expected).pvalue > 1e-4


def allowed(logits: np.ndarray, top_k: int, top_p: float) -> set[int]:
    """The tokens that the settings keep, found one at a time from the likeliest down."""
    order = sorted(range(len(logits)), key=lambda token: -logits[token])
    if top_k:
        order = order[:top_k]
    weights = np.exp(logits[order].astype(float))
    kept, mass = set(), 0.0
    for token, weight in zip(order, weights / weights.sum(), strict=True):
        kept.add(token)
        mass += weight
        if mass >= top_p:
            break
    return kept


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.9), (7, 1.0), (20, 0.6), (0, 0.999), (1, 0.5)])
def test_only_the_nucleus_is_drawn_and_all_of_it(top_k, top_p):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=1500).astype(np.float32) * 3  # a nucleus wider than the first 512 tokens
    settings = [Sampling(top_k=top_k, top_p=top_p)] * 4000
    uniforms = torch.from_numpy(np.linspace(0, 1, 4000, endpoint=False))
    drawn = set(draw(torch.from_numpy(logits).expand(4000, -1), settings, uniforms).tolist())
    nucleus = allowed(logits, top_k, top_p)
    assert drawn <= nucleus
    likely = {token for token in nucleus if np.exp(logits[token]) / np.exp(logits).sum() > 1 / 1000}
    assert likely <= drawn


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_the_family_takes_the_lean_pass_and_few_slots_change_nothing(kind):
    model = tiny(kind)
    with torch.inference_mode():
        assert fast_decoder(model, KeyValues(3, 2, 20), PROMPTS[0]) is not None
    settings = [Sampling(max_tokens=3 + 4 * n, seed=n) for n in range(len(PROMPTS))]
    many = sample(model, PROMPTS, settings, ends={5})
    few = sample(model, PROMPTS, settings, ends={5}, slots=2)
    assert [a.ids for a in many] == [a.ids for a in few]


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_module_without_a_lean_pass_draws_the_same(kind, monkeypatch):
    model = tiny(kind)
    settings = [Sampling(max_tokens=3 + 4 * n, seed=n) for n in range(len(PROMPTS))]
    lean = sample(model, PROMPTS, settings, ends={5}, slots=2)
    monkeypatch.setattr("stillhouse.models.sampling.open_decoder.fast_decoder", lambda *_: None)
    own = sample(model, PROMPTS, settings, ends={5}, slots=2)
    assert [a.ids for a in lean] == [a.ids for a in own]


def test_equal_prompts_are_prefilled_once_even_where_slots_are_short(monkeypatch):
    model, prefilled = tiny("llama"), []
    original = FastDecoder.prefill

    def counted(self, prompts, slots):
        prefilled.extend(map(tuple, prompts))
        return original(self, prompts, slots)

    prompts = [PROMPTS[0], PROMPTS[2]] * 5
    settings = [Sampling(max_tokens=5 + n, seed=n) for n in range(10)]
    alone = [sample(model, [p], [s], ends={5})[0] for p, s in zip(prompts, settings, strict=True)]
    monkeypatch.setattr(FastDecoder, "prefill", counted)
    together = sample(model, prompts, settings, ends={5}, slots=3)
    assert [a.ids for a in together] == [a.ids for a in alone]
    # the beginning of the first prompt is also compared with the module
    assert sorted(prefilled) == sorted([tuple(PROMPTS[0]), tuple(PROMPTS[0]), tuple(PROMPTS[2])])


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.3])
def test_logp_is_that_of_a_plain_pass_in_float64(temperature):
    model = tiny("llama")
    settings = [Sampling(temperature=temperature, top_k=9, max_tokens=12, seed=n) for n in range(6)]
    answers = sample(model, PROMPTS, settings, ends={5}, slots=4)
    oracle = tiny("llama").double()
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        with torch.no_grad():
            logits = oracle(torch.tensor([prompt + answer.ids])).logits[0, len(prompt) - 1 : -1]
        logp = (logits / (temperature or 1.0)).log_softmax(-1)
        expected = logp[torch.arange(len(answer.ids)), answer.ids]
        assert answer.logp == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("rule", [{"min_p": 0.2}, {"top_p": 0.7}, {"top_k": 3}, {"top_k": 4, "min_p": 0.3}])
def test_truncated_draws_follow_the_exact_probabilities(rule):
    """Chi-square goodness of fit; fails by chance once in 10,000 seeds (this one is fixed)."""
    logits = np.array([1.0, 0.2, -0.5, 2.0, -1.5, 0.0])
    weights = np.exp(logits)
    kept = sorted(allowed(logits, rule.get("top_k", 0), rule.get("top_p", 1.0)))
    kept = [token for token in kept if weights[token] >= rule.get("min_p", 0) * weights.max()]
    uniforms = torch.from_numpy(np.random.default_rng(0).random(20_000))
    batch = torch.from_numpy(logits).float().expand(20_000, -1)
    counts = np.bincount(draw(batch, [Sampling(**rule)] * 20_000, uniforms).numpy(), minlength=6)
    assert counts[kept].sum() == 20_000
    expected = weights[kept] / weights[kept].sum() * 20_000
    assert stats.chisquare(counts[kept], expected).pvalue > 1e-4


def test_a_stopped_answer_leaves_and_the_others_go_on():
    model = tiny("llama")
    settings = [Sampling(max_tokens=20, seed=n) for n in range(6)]
    free = sample(model, PROMPTS, settings, ends=set())
    cut = sample(
        model, PROMPTS, settings, ends=set(), stopped=lambda index, ids: index == 1 and len(ids) == 4
    )
    assert cut[1].ids == free[1].ids[:4]
    assert [a.finish_reason for a in cut] == ["length", "stop", *["length"] * 4]
    assert [a.ids for n, a in enumerate(cut) if n != 1] == [a.ids for n, a in enumerate(free) if n != 1]


def test_updated_weights_are_seen():
    model = tiny("llama")
    greedy = [Sampling(temperature=0, max_tokens=3)]
    sample(model, PROMPTS[:1], greedy, ends=set())
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(-2)
    after = sample(model, PROMPTS[:1], greedy, ends=set())[0]
    with torch.no_grad():
        logp = model(torch.tensor([PROMPTS[0]])).logits[0, -1].log_softmax(-1)
    assert after.ids[0] == logp.argmax()
    assert after.logp[0] == pytest.approx(logp.max().item(), abs=1e-4)


@pytest.mark.slow
def test_smollm2_is_greedy_like_generate():
    weights = load_weights("embedded:smollm2")
    texts = [
        "Hi",
        "The capital of France is",
        "Write a short poem about rivers, bridges and the sea, please:",
    ]
    prompts = [weights.tokenizer(text)["input_ids"] for text in texts]
    answers = sample(weights.model, prompts, [Sampling(temperature=0, max_tokens=24)] * 3, ends={2}, slots=2)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt])
        out = weights.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, eos_token_id=2
        )
        assert answer.ids == out[0, len(prompt) :].tolist()
