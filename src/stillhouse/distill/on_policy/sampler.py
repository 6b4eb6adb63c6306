"""The samples of a round: picks the prompts, samples and scores answers, refills groups without signal.

Everything depends on the seed and the progress of the run alone, so that a resumed run continues with the
same prompts and samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stillhouse.distill.loss.policy_loss import has_signal
from stillhouse.distill.on_policy.config import OnPolicyConfig, OnPolicyProgress
from stillhouse.distill.on_policy.curriculum import PassRates
from stillhouse.distill.on_policy.rollouts import (
    RewardFunction,
    RolloutBatch,
    TokenizedPrompt,
    join_batches,
    roll_out,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REFILLS = 4
"""Dynamic sampling uses at most this many times the round's prompts."""


def sample_round(
    model: PreTrainedModel,
    prompts: Sequence[TokenizedPrompt],
    config: OnPolicyConfig,
    progress: OnPolicyProgress,
    reward_function: RewardFunction | None,
) -> RolloutBatch:
    """Samples and scores the answers of the next round.

    With dynamic sampling (Yu et al. 2025, DAPO, arXiv:2503.14476, section 3.2) it adds prompts until enough
    groups have rewards that differ, at most :data:`REFILLS` times the round's prompts; groups without signal
    are still in the batch.
    """
    settings = config.settings
    count, dynamic = settings.prompts, settings.policy.dynamic_sampling
    prompt_at = _prompt_stream(prompts, config, progress)
    batches: list[RolloutBatch] = []
    used = groups_with_signal = 0
    while not batches or (dynamic and groups_with_signal < count and used < REFILLS * count):
        batch = roll_out(
            model,
            [prompt_at(used + i) for i in range(count)],
            settings,
            end_ids=config.end_ids,
            stopping_criterion=config.stopping_criterion,
            reward_function=reward_function,
            seed=f"{config.seed} {progress.rounds} {len(batches)}",
        )
        used += count
        batches.append(batch)
        groups_with_signal += int(has_signal(batch.rewards_GS).sum())
    return join_batches(batches)


def _prompt_stream(
    prompts: Sequence[TokenizedPrompt], config: OnPolicyConfig, progress: OnPolicyProgress
) -> Callable[[int], TokenizedPrompt]:
    """The round's prompts by position, without end.

    Shuffled prompts continue where the last round stopped, epoch after epoch; any other order is decided anew
    in each round, by the pass rates so far.
    """
    count = len(prompts)
    if config.settings.order != "shuffled":
        rng = np.random.default_rng([config.seed, progress.rounds, 13])
        rates = PassRates(config.pass_rates, progress.answers)
        order = rates.order([prompt.id for prompt in prompts], config.settings.order, rng)
        return lambda position: prompts[order[position % count]]

    def shuffled(position: int) -> TokenizedPrompt:
        epoch, index = divmod(progress.asked + position, count)
        return prompts[int(np.random.default_rng([config.seed, epoch]).permutation(count)[index])]

    return shuffled
