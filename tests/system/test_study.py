"""A study of two arms, small enough for seconds: it runs, is measured, and is not done again."""

import json
import runpy
import shutil
from pathlib import Path

import pytest

from stillhouse import pipeline
from stillhouse.errors import RecipeError
from stillhouse.recipe.study import load_study

pytestmark = pytest.mark.slow

TASKS = Path(__file__).parents[2] / "recipes" / "r1-mini" / "tasks.py"
STUDY = """\
study: tiny
seeds: [1]
make: tasks.py
settings: {web: 300, cold: 30, prompts: 90, test: 6}
tests: {learned: "{data}/learned.jsonl"}
verifiers: [{kind: reasoning_gym}]
answers: {samples: 2, sample_tokens: 32}
common:
  teacher: {terms: own}
  prompts: {source: "{data}/prompts.jsonl", held_out: 10}
  filter: {near_duplicates: null, contamination_ngram: null}
  verifiers: [{kind: reasoning_gym}]
  objective: {kind: cross_entropy}
  train: {epochs: 0, batch_tokens: 1024, max_length: 256}
  collect: {max_tokens: 16}
  evaluate: {control: false, prompts: 0, speed: false}
arms:
  base:
    label: base
    recipe:
      student: {model: "{data}/start"}
      prompts: {source: "{data}/web.jsonl"}
      train: {epochs: 1}
  zero:
    label: zero
    recipe:
      student: {model: "{runs}/base/student"}
      filter: {truncated: false}
      on_policy: {rounds: 2, prompts: 4, samples: 2, max_tokens: 16, teacher: 0, reward: 1}
claims: [{says: it helps, arm: zero, over: base, test: learned}]
"""


def test_a_study_runs_its_arms_once_and_measures_them(tmp_path):
    pytest.importorskip("reasoning_gym")
    shutil.copy(TASKS, tmp_path)
    file, out = tmp_path / "study.yaml", tmp_path / "out"
    file.write_text(STUDY)
    study = load_study(file)

    results = pipeline.run_study(study, file, out, pipeline.run)

    base, zero = results["arms"]["base"], results["arms"]["zero"]
    assert zero["flops_with_those_before"] == pytest.approx(base["flops"] + zero["flops"])
    assert base["flops"] > 0 < zero["flops"]
    assert len(zero["curves"][0]["reward"]) == 2
    assert results["claims"][0]["verdict"] == "one seed: no verdict"
    assert "<script" not in (out / "study.html").read_text()

    def never(recipe, place):
        raise AssertionError(f"{recipe.name} was run again")

    assert pipeline.run_study(study, file, out, never)["arms"] == results["arms"]

    more = load_study(file, ["answers.samples=3"])
    again = pipeline.run_study(more, file, out, never)
    assert again["samples"] == 3
    assert again["arms"]["base"]["tests"] != base["tests"]  # asked again, by the same student

    with pytest.raises(RecipeError, match="zero was started from another recipe"):
        pipeline.run_study(load_study(file, ["arms.zero.recipe.on_policy.rounds=3"]), file, out, never)
    weights = out / "seed-1" / "base" / "student" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(RecipeError, match="zero was started from another base"):
        pipeline.run_study(study, file, out, never)


@pytest.mark.nightly
@pytest.mark.timeout(900)  # three and a half minutes where nothing else runs
def test_the_short_miniature_raises_the_reward_and_its_artefacts_load(tmp_path):
    pytest.importorskip("reasoning_gym")
    import numpy as np
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = TASKS.parent / "short.yaml"

    results = pipeline.run_study(load_study(file), file, tmp_path, pipeline.run)

    rewards = results["arms"]["zero"]["curves"][0]["reward"]
    fifth = len(rewards) // 5
    assert np.mean(rewards[-fifth:]) > np.mean(rewards[:fifth]) + 0.03
    assert (tmp_path / "study.html").read_text().count("<svg") >= 2
    for arm in results["arms"]:
        place = tmp_path / "seed-1" / arm / "student"
        tokenizer, model = AutoTokenizer.from_pretrained(place), AutoModelForCausalLM.from_pretrained(place)
        question = [{"role": "user", "content": "State the final answer to the following: 3 + 4 ="}]
        ids = tokenizer.apply_chat_template(question, return_tensors="pt", return_dict=True)["input_ids"]
        written = model.generate(ids, max_new_tokens=32, do_sample=False)[0, ids.shape[1] :]
        assert tokenizer.decode(written, skip_special_tokens=True).strip()


def test_the_miniature_s_files_share_no_question_and_its_seeds_no_draw(tmp_path):
    pytest.importorskip("reasoning_gym")
    make = runpy.run_path(str(TASKS))["make"]
    small = {"web": 900, "cold": 60, "prompts": 150, "test": 30, "teacher": [32, 1], "student": [32, 1]}
    for seed in (1, 2):
        make(tmp_path / str(seed), seed, small)

    questions = {
        (seed, name): _questions(tmp_path / str(seed) / f"{name}.jsonl")
        for seed in (1, 2)
        for name in ("learned", "harder", "longest", "cold", "prompts", "web")
    }
    assert len(questions[1, "prompts"]) == 150 and len(questions[1, "learned"]) == 30
    for name in ("learned", "harder", "longest", "cold", "prompts"):
        for other in ("learned", "harder", "longest", "cold", "prompts", "web"):
            assert name == other or not questions[1, name] & questions[1, other], (name, other)
    sums = [{text for text in questions[seed, "web"] if "+" in text} for seed in (1, 2)]
    assert len(sums[0]) > 200 and len(sums[0] & sums[1]) < 25  # 3-term sums alone are 2,916


def _questions(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["messages"][0]["content"] if "messages" in row else row["question"] for row in rows}
