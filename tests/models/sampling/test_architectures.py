"""Samples of every kind of attention against transformers: ``generate``, and a plain pass over the whole."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from stillhouse.errors import ContextLengthError
from stillhouse.models import ContinuousSampler, LiveSequence
from stillhouse.models.sampling import continuous
from stillhouse.models.sampling.batch import sample
from stillhouse.models.sampling.open_decoder import decoder_kind
from stillhouse.models.types import Sampling

WINDOW = 8
CONTEXT = 22  # the original context of rotations that depend on the length
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "num_key_value_heads": 4,
}
WINDOWED = {"sliding_window": WINDOW}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": CONTEXT,
    "factor": 64 / CONTEXT,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"], "head_dim": 8, **WINDOWED}
CASES = {
    "mistral": ("fast", {"model_type": "mistral", **WINDOWED}),
    "qwen2": (
        "fast",
        {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1, **WINDOWED},
    ),
    "phi3": ("batched", {"model_type": "phi3", **WINDOWED}),
    "starcoder2": ("batched", {"model_type": "starcoder2", **WINDOWED}),
    "gemma2": ("batched", {"model_type": "gemma2", **ALTERNATING}),
    "gemma3": ("batched", {"model_type": "gemma3_text", **ALTERNATING}),
    "deepseek_v3": ("batched", {"model_type": "deepseek_v3", **LATENT}),
    "glm4_moe_lite": ("batched", {"model_type": "glm4_moe_lite", **LATENT}),
    "nemotron": ("batched", {"model_type": "nemotron"}),
    "stablelm": ("batched", {"model_type": "stablelm"}),
    "lfm2": ("sequential", {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]}),
    "llama_dynamic": ("batched", {"model_type": "llama", "rope_parameters": DYNAMIC}),
    "llama_longrope": ("batched", {"model_type": "llama", "rope_parameters": LONGROPE}),
    "phi3_longrope": (
        "batched",
        {
            "model_type": "phi3",
            "rope_parameters": LONGROPE,
            "original_max_position_embeddings": CONTEXT,
            **WINDOWED,
        },
    ),
}
LENGTHS = (3, 20, 20, 19)
NEW = 5


def tiny(name: str):
    config = AutoConfig.for_model(**SIZES | CASES[name][1])
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.4)  # wide, so that it matters what a token sees
    return model.eval()


def prompts_of(lengths):
    return [[(11 + length + 7 * n * n) % 61 for n in range(length)] for length in lengths]


def generated(model, prompt, count):
    if model.config.model_type == "llama":  # its generate keeps keys of the short rotation, Phi-3's does not
        ids = list(prompt)
        for _ in range(count):
            with torch.no_grad():
                ids.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
        return ids[len(prompt) :]
    ids = torch.tensor([prompt])
    answer = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return answer[0, len(prompt) :].tolist()


def logps_of_prefixes(model, prompt, answer):
    """The log-probability of each token of ``answer``, from a pass over all before it without a cache."""
    logps = []
    for count, token in enumerate(answer):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer[:count]]), use_cache=False).logits[0, -1]
        logps.append(logits.log_softmax(-1)[token].item())
    return logps


@pytest.mark.parametrize("name", CASES)
def test_greedy_samples_are_those_of_transformers(name):
    model, prompts = tiny(name), prompts_of(LENGTHS)
    assert decoder_kind(type(model), model.config) == CASES[name][0]
    settings = [Sampling(temperature=0, max_tokens=NEW)] * len(prompts)
    answers = sample(model, prompts, settings, ends=set(), slots=3)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.ids == generated(model, prompt, NEW)
        assert answer.logp == pytest.approx(logps_of_prefixes(model, prompt, answer.ids), abs=1e-3)


def test_dynamic_rotations_are_sampled_only_within_the_context():
    model = tiny("llama_dynamic")
    with pytest.raises(ContextLengthError, match="longer than the model's context of 64"):
        sample(model, prompts_of([60]), [Sampling(max_tokens=5)], ends=set())


@pytest.mark.parametrize("name", ["mistral", "phi3", "gemma3", "phi3_longrope", "lfm2"])
def test_a_server_reads_prompts_in_chunks_and_scores_them_as_transformers(name, monkeypatch):
    """Chunks are shorter than the windows; prompts are on both sides of the original context."""
    monkeypatch.setattr(continuous, "CHUNK", 5)
    model, prompts = tiny(name), prompts_of((*LENGTHS, CONTEXT + 6))
    sampler = ContinuousSampler(model, set(), slots=3, capacity=64, kept=2)
    sequences = [
        LiveSequence(tuple(prompt), Sampling(temperature=0, max_tokens=4), 0, score_prompt=row % 2 == 1)
        for row, prompt in enumerate(prompts)
    ]
    for sequence in sequences:
        sampler.add(sequence)
    while sampler.busy:
        sampler.step()
    for prompt, sequence in zip(prompts, sequences, strict=True):
        assert sequence.ids == generated(model, prompt, 4)
        if sequence.score_prompt:
            with torch.no_grad():
                logp = model(torch.tensor([prompt]), use_cache=False).logits[0].log_softmax(-1)
            expected = [logp[n, token].item() for n, token in enumerate(prompt[1:])]
            assert [score.logprob for score in sequence.prompt_logprobs] == pytest.approx(expected, abs=1e-3)
