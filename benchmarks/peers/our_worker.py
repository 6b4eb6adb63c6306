"""Our side of ``on_policy.py``: one run of ``train_on_policy`` on the same task as ``trl_worker.py``."""

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
    "grpo": Objective(kind="cross_entropy"),  # of weight 0: the reward alone teaches
    "distillation": Objective(kind="reverse_kl"),
    "gkd": Objective(kind="jsd", beta=0.5),
}


class Marks:
    """A tracker: it hears of every round when its metrics are written, before any checkpoint."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def log(self, step: int, values: dict[str, float]) -> None:
        self.meter.count("learned", int(values["tokens"]))
        self.meter.mark()

    def close(self) -> None:
        pass


def tokenized_prompts(weights: Weights, path: str, seed: int) -> list[TokenizedPrompt]:
    """The prompts, placed so that the loop's shuffle asks them in the file's order."""
    talks = read_conversations(path)
    order = np.random.default_rng([seed, 0]).permutation(len(talks))
    placed: list[TokenizedPrompt | None] = [None] * len(talks)
    for number, talk in enumerate(talks):
        ids = weights.template.encode_prompt(weights.tokenizer, talk)
        placed[int(order[number])] = TokenizedPrompt(str(number), ids, (TeacherPrompt(0, 1.0, ids),))
    return [prompt for prompt in placed if prompt is not None]


def watch(meter: Meter) -> None:
    """Times the loop's parts from outside."""
    roll_out, update = sampler.roll_out, learner.OnPolicyLearner.update

    def counted_roll_out(*arguments: Any, **keywords: Any) -> Any:
        found = roll_out(*arguments, **keywords)
        meter.count("samples", len(found.rollouts))
        meter.count("generated", sum(len(rollout.ids) for rollout in found.rollouts))
        return found

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
