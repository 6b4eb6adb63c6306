"""Sections of a recipe for learning from what the student says itself.

Plain values like those of :mod:`stillhouse.recipe`, which takes them in; see there.
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
    """How a reward becomes a gradient."""

    normalise: Literal["std", "none"] = "none"
    """Divide a group's advantages by its standard deviation (GRPO), or not (Dr. GRPO)."""
    aggregate: Literal["sequence", "token", "constant"] = "token"
    """Mean over each answer and then over answers (GRPO), over all tokens (DAPO), or the sum over
    `max_tokens` (Dr. GRPO)."""
    clip_low: NonNegativeFloat = 0.2
    """The importance ratio is clipped at 1 − this …"""
    clip_high: NonNegativeFloat = 0.28
    """… and at 1 + this (clip-higher, DAPO; PPO and GRPO: 0.2)."""
    dynamic_sampling: bool = False
    """Ask more prompts until the round is full of groups whose rewards differ (DAPO)."""
    overlong: NonNegativeInt = 0
    """The reward falls by up to 1 over this many tokens before `max_tokens` (DAPO); 0: it does not."""
    reference_kl: NonNegativeFloat = 0.0
    """Weight of the KL to the student as it was at the start (the k3 estimator, GRPO)."""
    entropy: NonNegativeFloat = 0.0
    """Weight of an entropy bonus."""
    inner_steps: PositiveInt = 1
    """Optimizer steps on the samples of one round."""


@dataclass(frozen=True, kw_only=True)
class OnPolicy:
    """Learning from the student's own samples: the teacher's divergence on them, a reward, or both."""

    rounds: PositiveInt = 100
    """Times that the student answers and learns from it."""
    prompts: PositiveInt = 8
    """Prompts in a round."""
    samples: PositiveInt = 8
    """Answers to each prompt: a group."""
    order: Literal["shuffled", "easy_first", "uncertain"] = "shuffled"
    """Which prompts are asked, by the reward they had: in any order, `easy_first` in each pass over them, or
    those near one half more often (`uncertain`)."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature; log-probabilities are taken at it too."""
    top_p: PositiveShare = 1.0
    """Nucleus."""
    top_k: NonNegativeInt = 0
    """Only the k likeliest tokens; 0 is all."""
    min_p: Share = 0.0
    """Only tokens with at least this share of the likeliest one's probability."""
    max_tokens: PositiveInt = 256
    """Longest answer, in tokens."""
    teacher: NonNegativeFloat = 1.0
    """Weight of the recipe's divergence (`objective`) from the teacher on the student's own samples."""
    reward: NonNegativeFloat = 0.0
    """Weight of the policy gradient of the verifiers' reward."""
    policy: Policy = field(default_factory=Policy)
    """How the reward is used."""
    off_policy: Share = 0.0
    """Share of rounds that learn from the corpus instead of from samples (GKD's 1 − λ)."""
    learning_rate: PositiveFloat | None = None
    """Peak learning rate of this stage (default: `train.learning_rate`)."""
    patience: PositiveInt = 5
    """Rounds without any reward after which the run stops and says so, instead of training on nothing."""
