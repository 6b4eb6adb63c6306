"""The R1 recipe for real models, every arm of it: random Qwen3 and Llama weights under the hub's names."""

import importlib
import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from stillhouse import pipeline
from stillhouse.recipe.study import load_study

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = {
    "Qwen/Qwen3-8B": "qwen3",
    "Qwen/Qwen3-1.7B-Base": "qwen3",
    "Qwen/Qwen3-0.6B-Base": "qwen3",
    "meta-llama/Llama-3.2-1B": "llama",
}
REINFORCED = ("zero", "r1", "rl-qwen", "distil-rl-qwen")
SMALL = [
    "settings={prompts: 40, test: 8}",
    "answers.samples=2",
    "answers.sample_tokens=16",
    "common.prompts.held_out=4",
    "common.collect.max_tokens=24",
    "common.collect.samples=2",
    "common.train.batch_tokens=1024",
    "common.filter.truncated=false",
    "arms.cold.recipe.prompts.limit=20",
    *(
        f"arms.{arm}.recipe.on_policy.{key}={value}"
        for arm in (*REINFORCED, "on-policy-qwen")
        for key, value in (("rounds", 2), ("prompts", 4), ("samples", 2), ("max_tokens", 16))
    ),
    *(
        f"arms.{arm}.recipe.on_policy.policy.overlong=8"
        for arm in ("zero", "r1", "rl-qwen", "distil-rl-qwen")
    ),
    # random weights answer nothing right
    *(
        f"arms.{arm}.recipe.select.min_reward=0"
        for arm in ("cold", "distil-qwen", "distil-llama", "answers-qwen")
    ),
]


@pytest.mark.timeout(900)  # a minute and a half where nothing else runs
def test_every_arm_runs_with_random_weights_under_the_hubs_names(tmp_path, monkeypatch):
    pytest.importorskip("reasoning_gym")
    from huggingface_hub import constants

    monkeypatch.syspath_prepend(RECIPES / "r1-mini")
    miniature = importlib.import_module("tasks")
    tokenizer = miniature._tokenizer(list(miniature._tasks(miniature.LEARNED, 60, 1, set())), 400)
    for name, family in NAMES.items():
        place_in_cache(tmp_path / "hub", name, family, tokenizer)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    file = RECIPES / "r1-qwen3.yaml"
    study = load_study(file, SMALL)

    results = pipeline.run_study(study, file, tmp_path / "out", pipeline.run)

    assert list(results["arms"]) == list(study.arms)
    assert all(arm["flops"] > 0 for arm in results["arms"].values())
    learned = json.loads((tmp_path / "out" / "seed-1" / "r1" / "student" / "config.json").read_text())
    assert learned["model_type"] == "qwen3"
    assert len(results["claims"]) == len(study.claims)


def place_in_cache(cache, name, family, tokenizer):
    """Random weights of the family where the hub's client keeps a model that it has downloaded."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    config = AutoConfig.for_model(
        family,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(snapshot)
    tokenizer.save_pretrained(snapshot)
