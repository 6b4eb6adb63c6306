"""What the student says in one round: groups of samples, their rewards, and the documents they become.

Samples are drawn by seeds that depend on the run's seed, the round and the place in it, never on the
batch. Who scores them is the caller's business: a function from questions and answers to numbers.

Shapes: G groups (prompts), S samples of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.distill.data.documents import Document
from stillhouse.distill.loss.policy_loss import overlong_penalty
from stillhouse.hashing import seed_from
from stillhouse.models import Sampling
from stillhouse.recipe.on_policy import OnPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TeacherPrompt:
    """What a teacher reads before an answer."""

    teacher: int
    """Its number."""
    weight: float
    """Of its distributions; the weights of a question's teachers sum to 1."""
    ids: list[int]


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as the student and its teachers read it."""

    id: str
    ids: list[int]
    """The student's tokens."""
    teacher_prompts: tuple[TeacherPrompt, ...] = ()
    """Its teachers and what they read, which may come after a context of their own."""
    content: Any = None
    """What the scorer needs to know of it."""


RewardFunction = Callable[[Sequence[tuple[TokenizedPrompt, list[int]]]], Sequence[float]]
"""Rewards of answers (token ids), one each; not finite counts as 0."""

StoppingCriterion = Callable[[Sequence[int]], bool]
"""Whether an answer's ids so far end it: a stop text was said."""


@dataclass(frozen=True)
class Rollout:
    """One sample."""

    question: TokenizedPrompt
    ids: list[int]
    logp: list[float]
    """Of each token when it was drawn, at the sampling temperature."""
    finish_reason: str


@dataclass(frozen=True, eq=False)
class RolloutBatch:
    """The samples of one round, group after group, and what they are worth."""

    rollouts: list[Rollout]
    rewards_GS: Tensor
    """With the penalty for length, where there is one."""
    unscored: int
    """Samples whose reward was not a finite number; they count as 0."""

    def documents(self) -> list[Document]:
        """The samples as documents in which the answer's tokens are learned."""
        return [_document(rollout, rollout.question.ids) for rollout in self.rollouts]

    def read_by(self, teacher: int) -> dict[int, tuple[Document, float]]:
        """The samples that a teacher has a say in, by their place: as it reads them, and its weight there."""
        return {
            place: (_document(rollout, reading.ids), reading.weight)
            for place, rollout in enumerate(self.rollouts)
            for reading in rollout.question.teacher_prompts
            if reading.teacher == teacher
        }

    def groups(self, chosen_G: Tensor) -> RolloutBatch:
        """Only the groups where ``chosen_G`` is true."""
        size = self.rewards_GS.shape[1]
        kept = [
            r for g in chosen_G.nonzero()[:, 0].tolist() for r in self.rollouts[g * size : (g + 1) * size]
        ]
        return RolloutBatch(kept, self.rewards_GS[chosen_G], self.unscored)


def roll_out(
    model: PreTrainedModel,
    questions: Sequence[TokenizedPrompt],
    settings: OnPolicy,
    *,
    ends: set[int],
    score: RewardFunction | None,
    seed: str,
    stopped: StoppingCriterion | None = None,
) -> RolloutBatch:
    """Draws ``settings.samples`` answers to each question and scores them.

    Args:
        model: in eval mode, with its own attention.
        score: None without rewards; all are then 0.
        stopped: whether an answer's ids so far end it, beside ``ends``.
        seed: text that all draws depend on.
    """
    from stillhouse.models import sample

    asked = [question for question in questions for _ in range(settings.samples)]
    sampling = [_sampling(settings, f"{seed} {i} {question.id}") for i, question in enumerate(asked)]
    drawn = sample(
        model,
        [question.ids for question in asked],
        sampling,
        ends=ends,
        stopped=None if stopped is None else lambda place, ids: stopped(ids),
    )
    rollouts = [
        Rollout(question, answer.ids, answer.logp, answer.finish_reason)
        for question, answer in zip(asked, drawn, strict=True)
    ]
    values = [0.0] * len(rollouts)
    if score is not None:
        values = [float(value) for value in score([(r.question, r.ids) for r in rollouts])]
    unscored = sum(not math.isfinite(value) for value in values)
    rewards = torch.tensor([value if math.isfinite(value) else 0.0 for value in values])
    if settings.reward:
        lengths = [len(rollout.ids) for rollout in rollouts]
        rewards = rewards + overlong_penalty(lengths, settings.max_tokens, settings.policy.overlong)
    return RolloutBatch(rollouts, rewards.view(len(questions), settings.samples), unscored)


def _sampling(settings: OnPolicy, seed: str) -> Sampling:
    return Sampling(
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        min_p=settings.min_p,
        max_tokens=settings.max_tokens,
        seed=seed_from(seed),
    )


def _document(rollout: Rollout, prompt: list[int]) -> Document:
    ids = np.asarray([*prompt, *rollout.ids], dtype=np.int32)
    return Document(rollout.question.id, ids, np.arange(len(ids)) >= len(prompt))


def join(rounds: Sequence[RolloutBatch]) -> RolloutBatch:
    """Several rounds as one."""
    return RolloutBatch(
        [rollout for part in rounds for rollout in part.rollouts],
        torch.cat([part.rewards_GS for part in rounds]),
        sum(part.unscored for part in rounds),
    )
