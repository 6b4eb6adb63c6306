"""The recipe's section for on-policy training: the student learns from its own samples.

Part of :mod:`stillhouse.recipe`, which validates it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from stillhouse.recipe.field_types import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Share,
)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The policy gradient: advantages, clipping and regularization."""

    normalise: Literal["std", "none"] = "none"
    """Divide a group's advantages by its standard deviation (GRPO), or not (Dr. GRPO)."""
    aggregate: Literal["sequence", "token", "constant"] = "token"
    """Average over each answer and then over answers (GRPO), over all tokens (DAPO), or the sum divided by
    `max_tokens` (Dr. GRPO)."""
    clip_low: NonNegativeFloat = 0.2
    """Lower clip range: the importance ratio is clipped at 1 − this."""
    clip_high: NonNegativeFloat = 0.28
    """Upper clip range: the ratio is clipped at 1 + this (clip-higher, DAPO; PPO and GRPO: 0.2)."""
    dynamic_sampling: bool = False
    """Sample more prompts until the round has enough groups whose rewards differ (DAPO)."""
    overlong: NonNegativeInt = 0
    """Soft length penalty: the reward falls by up to 1 over this many tokens before `max_tokens` (DAPO);
    0: no penalty."""
    reference_kl: NonNegativeFloat = 0.0
    """Weight of the KL divergence from the initial student (the k3 estimator, GRPO)."""
    entropy: NonNegativeFloat = 0.0
    """Weight of the entropy bonus."""
    inner_steps: PositiveInt = 1
    """Optimizer steps on the samples of one round."""


@dataclass(frozen=True, kw_only=True)
class OnPolicy:
    """Training on the student's own samples, by the teacher's divergence on them, a reward, or both."""

    rounds: PositiveInt = 100
    """Rounds of sampling and learning."""
    prompts: PositiveInt = 8
    """Prompts per round."""
    samples: PositiveInt = 8
    """Answers per prompt (a group)."""
    order: Literal["shuffled", "easy_first", "uncertain"] = "shuffled"
    """Order of prompts by their past rewards: random, easiest first in each pass over them (`easy_first`), or
    those with a reward near one half more often (`uncertain`)."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature; log-probabilities are computed at it too."""
    top_p: PositiveShare = 1.0
    """Nucleus sampling: only the likeliest tokens with this total probability."""
    top_k: NonNegativeInt = 0
    """Only the k likeliest tokens; 0: all."""
    min_p: Share = 0.0
    """Only tokens with at least this share of the likeliest token's probability."""
    max_tokens: PositiveInt = 256
    """Longest answer, in tokens."""
    teacher: NonNegativeFloat = 1.0
    """Weight of the recipe's divergence (`objective`) from the teacher on the student's own samples."""
    reward: NonNegativeFloat = 0.0
    """Weight of the policy gradient of the verifiers' reward."""
    policy: Policy = field(default_factory=Policy)
    """Settings of the policy gradient."""
    off_policy: Share = 0.0
    """Share of rounds that train on the corpus instead of samples (GKD's 1 − λ)."""
    learning_rate: PositiveFloat | None = None
    """Peak learning rate of this stage (default: `train.learning_rate`)."""
    patience: PositiveInt = 5
    """Consecutive rounds without any reward after which the run stops with an error."""
