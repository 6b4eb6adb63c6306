"""Stillhouse's side of ``on_policy.py``: runs ``train_on_policy`` on the same task as ``trl_worker.py``."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shared import WARM_UP, Meter, read_conversations, reward

from stillhouse.distill.forward.forward_pass import ForwardPass
from stillhouse.distill.on_policy import learner, loop, sampler
from stillhouse.distill.on_policy.config import OnPolicyConfig
from stillhouse.distill.on_policy.rollouts import TeacherPrompt, TokenizedPrompt
from stillhouse.models import Weights, load_weights
from stillhouse.recipe import Objective, Train
from stillhouse.recipe.on_policy import OnPolicy

OBJECTIVES = {
    "grpo": Objective(kind="cross_entropy"),  # with weight 0: the reward is the only signal
    "distillation": Objective(kind="reverse_kl"),
    "gkd": Objective(kind="jsd", beta=0.5),
}


class Marks:
    """A tracker that records the end of each round, before any checkpoint."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def log(self, step: int, values: dict[str, float]) -> None:
        self.meter.count("learned", int(values["tokens"]))
        self.meter.mark()

    def close(self) -> None:
        pass


def tokenized_prompts(weights: Weights, path: str, seed: int) -> list[TokenizedPrompt]:
    """The prompts, ordered so that the loop's shuffle restores the order of the file."""
    conversations = read_conversations(path)
    order = np.random.default_rng([seed, 0]).permutation(len(conversations))
    ordered: list[TokenizedPrompt | None] = [None] * len(conversations)
    for number, conversation in enumerate(conversations):
        ids = weights.template.encode_prompt(weights.tokenizer, conversation)
        ordered[int(order[number])] = TokenizedPrompt(str(number), ids, (TeacherPrompt(0, 1.0, ids),))
    return [prompt for prompt in ordered if prompt is not None]


def watch(meter: Meter) -> None:
    """Wraps parts of the loop to count and time them."""
    roll_out, update = sampler.roll_out, learner.OnPolicyLearner.update

    def counted_roll_out(*arguments: Any, **keywords: Any) -> Any:
        batch = roll_out(*arguments, **keywords)
        meter.count("samples", len(batch.rollouts))
        meter.count("generated", sum(len(rollout.ids) for rollout in batch.rollouts))
        return batch

    def counted_update(self: Any, learning_rate: float) -> None:
        update(self, learning_rate)
        meter.count("optimizer steps", 1)

    sampler.roll_out = meter.timed("sampling", counted_roll_out)
    loop.open_tracker = lambda *_: Marks(meter)
    learner.OnPolicyLearner.update = counted_update
    ForwardPass.hidden = meter.timed("teacher", ForwardPass.hidden)


def main() -> None:
    task = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    meter = Meter()
    watch(meter)
    weights = load_weights(task["model"])
    taught = task["method"] != "grpo"

    def score(answers: Any) -> list[float]:
        return [reward(str(weights.tokenizer.decode(ids, skip_special_tokens=True))) for _, ids in answers]

    settings = OnPolicy(
        rounds=task["steps"] + WARM_UP,
        prompts=task["prompts_per_step"],
        samples=task["samples"],
        max_tokens=task["max_tokens"],
        teacher=float(taught),
        reward=float(not taught),
    )
    train = Train(
        learning_rate=task["learning_rate"],
        schedule="constant",
        warmup=0.0,
        micro_tokens=task["ours"]["micro_tokens"],
        checkpoint_every=10**9,
        trackers=("tensorboard",),
    )
    with tempfile.TemporaryDirectory() as directory:
        loop.train_on_policy(
            weights.model,
            tokenized_prompts(weights, task["prompts"], task["seed"]),
            OnPolicyConfig(
                settings=settings,
                objective=OBJECTIVES[task["method"]],
                train=train,
                seed=task["seed"],
                end_ids=set(),  # every answer has its full length
            ),
            Path(directory),
            teachers=[load_weights(task["model"], dtype="bfloat16").model] if taught else [],
            reward_function=None if taught else score,
        )
    meter.report()


if __name__ == "__main__":
    main()
