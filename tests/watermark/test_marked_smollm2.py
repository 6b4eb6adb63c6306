"""A mark in the answers of a real model: detected in the ids, and in the re-tokenized text."""

from __future__ import annotations

import pytest

from stillhouse.models import Sampling, load_weights
from stillhouse.models.sampling.batch import sample
from stillhouse.watermark import Mark, detect, new_key

pytestmark = pytest.mark.slow
QUESTIONS = (
    "Describe a garden in spring.",
    "Why do people travel?",
    "What is a good breakfast?",
    "Tell me a story.",
)


def test_smollm2s_answers_carry_the_mark_through_their_text():
    weights = load_weights("embedded:smollm2", dtype="bfloat16")
    tokenizer = weights.tokenizer
    prompts = [
        weights.template.encode_prompt(tokenizer, [{"role": "user", "content": text}]) for text in QUESTIONS
    ]
    settings = [Sampling(max_tokens=60, seed=seed) for seed in range(len(prompts))]
    mark = Mark(new_key(), delta=3.0)
    marked = sample(weights.model, prompts, settings, ends=weights.end_ids, markers=[mark] * len(prompts))
    plain = sample(weights.model, prompts, settings, ends=weights.end_ids)
    texts = [str(tokenizer.decode(one.ids, skip_special_tokens=True)) for one in marked]
    again = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert detect(mark, [one.ids for one in marked]).p_value < 1e-9
    assert detect(mark, again).p_value < 1e-8
    assert detect(mark, [one.ids for one in plain]).p_value > 1e-5
    assert detect(Mark(new_key()), again).p_value > 1e-5
