"""Rollouts: answers sampled from the student, their rewards, and the documents they become.

Each sample's seed depends on the seed of the run, the round and the sample's position in it, never on the
batch. The reward comes from the caller's function of prompts and answers.

Shapes: G groups (prompts), S samples of each.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.distill.data.documents import Document
from stillhouse.distill.loss.policy_loss import has_signal, overlong_penalty
from stillhouse.hashing import seed_from
from stillhouse.models import Sampling
from stillhouse.recipe.on_policy import OnPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TeacherPrompt:
    """The tokens that a teacher reads before an answer."""

    teacher: int
    """The teacher's number."""
    weight: float
    """Of its distributions; the weights of a prompt's teachers sum to 1."""
    ids: list[int]


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as the student and its teachers read it."""

    id: str
    ids: list[int]
    """The student's tokens."""
    teacher_prompts: tuple[TeacherPrompt, ...] = ()
    """The same prompt for each of its teachers, which may have a private context."""
    metadata: Any = None
    """Passed through to the reward function."""


RewardFunction = Callable[[Sequence[tuple[TokenizedPrompt, list[int]]]], Sequence[float]]
"""Returns one reward per answer (token ids); a non-finite reward counts as 0."""

StoppingCriterion = Callable[[Sequence[int]], bool]
"""Whether an answer ends with these ids, because its text contains a stop text."""


@dataclass(frozen=True)
class Rollout:
    """One sampled answer."""

    prompt: TokenizedPrompt
    ids: list[int]
    logp: list[float]
    """Of each token when it was sampled, at the sampling temperature."""
    finish_reason: str


@dataclass(frozen=True, eq=False)
class RolloutBatch:
    """The samples of one round, group by group, and their rewards."""

    rollouts: list[Rollout]
    rewards_GS: Tensor
    """Including the length penalty, if there is one."""
    unscored: int
    """Samples whose reward was not a finite number; they count as 0."""
    any_reward: bool = False
    """Whether a sample had a reward above 0, or a group's rewards differ, before the length penalty."""

    def documents(self) -> list[Document]:
        """The samples as documents with a loss on the answer's tokens."""
        return [_document(rollout, rollout.prompt.ids) for rollout in self.rollouts]

    def teacher_documents(self, teacher: int) -> dict[int, tuple[Document, float]]:
        """The samples that a teacher scores, by index: the document as it reads it, and its weight there."""
        return {
            index: (_document(rollout, prompt.ids), prompt.weight)
            for index, rollout in enumerate(self.rollouts)
            for prompt in rollout.prompt.teacher_prompts
            if prompt.teacher == teacher
        }

    def select_groups(self, mask_G: Tensor) -> RolloutBatch:
        """The groups where ``mask_G`` is true."""
        size = self.rewards_GS.shape[1]
        kept = [r for g in mask_G.nonzero()[:, 0].tolist() for r in self.rollouts[g * size : (g + 1) * size]]
        return dataclasses.replace(self, rollouts=kept, rewards_GS=self.rewards_GS[mask_G])

    def metrics(self, *, rewarded: bool) -> dict[str, Any]:
        """Token counts and lengths of the samples; with ``rewarded``, statistics of the rewards too."""
        lengths = [len(rollout.ids) for rollout in self.rollouts]
        groups_G = self.rollouts[:: self.rewards_GS.shape[1]]
        values: dict[str, Any] = {
            "tokens": sum(lengths),
            "prompt_tokens": sum(len(rollout.prompt.ids) for rollout in groups_G),
            "length": round(sum(lengths) / len(lengths), 2),
            "cut": round(sum(r.finish_reason == "length" for r in self.rollouts) / len(lengths), 4),
        }
        if rewarded:
            values |= {
                "reward": round(self.rewards_GS.mean().item(), 5),
                "reward_std": round(self.rewards_GS.std(dim=1, correction=0).mean().item(), 5),
                "groups_without_signal": round(1 - has_signal(self.rewards_GS).float().mean().item(), 4),
            }
            if self.unscored:
                values["unscored"] = self.unscored
        return values


def roll_out(
    model: PreTrainedModel,
    prompts: Sequence[TokenizedPrompt],
    settings: OnPolicy,
    *,
    end_ids: set[int],
    reward_function: RewardFunction | None,
    seed: str,
    stopping_criterion: StoppingCriterion | None = None,
) -> RolloutBatch:
    """Samples ``settings.samples`` answers to each prompt and computes their rewards.

    Args:
        model: in eval mode, with its own attention.
        end_ids: ids that end an answer.
        reward_function: None without rewards; all are then 0.
        seed: text that determines all samples.
        stopping_criterion: ends an answer in addition to ``end_ids``.
    """
    from stillhouse.models import sample

    repeated = [prompt for prompt in prompts for _ in range(settings.samples)]
    sampling = [_sampling(settings, f"{seed} {i} {prompt.id}") for i, prompt in enumerate(repeated)]
    answers = sample(
        model,
        [prompt.ids for prompt in repeated],
        sampling,
        ends=end_ids,
        stopped=None if stopping_criterion is None else lambda index, ids: stopping_criterion(ids),
    )
    rollouts = [
        Rollout(prompt, answer.ids, answer.logp, answer.finish_reason)
        for prompt, answer in zip(repeated, answers, strict=True)
    ]
    values = [0.0] * len(rollouts)
    if reward_function is not None:
        values = [float(value) for value in reward_function([(r.prompt, r.ids) for r in rollouts])]
    unscored = sum(not math.isfinite(value) for value in values)
    rewards = torch.tensor([value if math.isfinite(value) else 0.0 for value in values])
    grouped_GS = rewards.view(len(prompts), settings.samples)
    any_reward = bool((grouped_GS > 0).any() or has_signal(grouped_GS).any())
    if settings.reward:
        lengths = [len(rollout.ids) for rollout in rollouts]
        rewards = rewards + overlong_penalty(lengths, settings.max_tokens, settings.policy.overlong)
    return RolloutBatch(rollouts, rewards.view(len(prompts), settings.samples), unscored, any_reward)


def join_batches(batches: Sequence[RolloutBatch]) -> RolloutBatch:
    """Several batches as one."""
    return RolloutBatch(
        [rollout for batch in batches for rollout in batch.rollouts],
        torch.cat([batch.rewards_GS for batch in batches]),
        sum(batch.unscored for batch in batches),
        any(batch.any_reward for batch in batches),
    )


def _sampling(settings: OnPolicy, seed: str) -> Sampling:
    return Sampling(
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        min_p=settings.min_p,
        max_tokens=settings.max_tokens,
        seed=seed_from(seed),
    )


def _document(rollout: Rollout, prompt_ids: list[int]) -> Document:
    ids = np.asarray([*prompt_ids, *rollout.ids], dtype=np.int32)
    return Document(rollout.prompt.id, ids, np.arange(len(ids)) >= len(prompt_ids))
