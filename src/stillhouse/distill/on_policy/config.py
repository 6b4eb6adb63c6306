"""Configuration and progress of an on-policy run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stillhouse.distill.on_policy.rollouts import StoppingCriterion
from stillhouse.recipe import Objective, Train
from stillhouse.recipe.on_policy import OnPolicy


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig:
    """What determines an on-policy run besides the models, the prompts and the reward function."""

    settings: OnPolicy
    """The recipe's section `on_policy`."""
    objective: Objective
    """The divergence on the student's samples. Teachers are run on each sample; ``targets: topk`` compares
    their ``top_k`` likeliest ids and the tail, any other value the whole distributions."""
    train: Train
    """Optimizer, compute type, device and passes; its epochs and tokens are not used."""
    seed: int
    end_ids: set[int]
    """Ids that end an answer."""
    stopping_criterion: StoppingCriterion | None = None
    """Ends an answer in addition to ``end_ids``, for templates that end answers with a text."""
    pass_rates: Mapping[str, float] = field(default_factory=dict)
    """Rates of prompts (by id) that were measured before the run, for `order`."""
    label: str = "on-policy"
    """Name of the run in the progress bar and trackers."""

    def resolved(self) -> OnPolicyConfig:
        """The same with the stage's own learning rate, and without pass rates that its `order` ignores."""
        train, settings = self.train, self.settings
        if settings.learning_rate is not None:
            train = dataclasses.replace(train, learning_rate=settings.learning_rate)
        pass_rates = dict(self.pass_rates) if settings.order != "shuffled" else {}
        return dataclasses.replace(self, train=train, pass_rates=pass_rates)


@dataclass(frozen=True)
class OnPolicyProgress:
    """The position of a run. Checkpoints store the fields by name."""

    rounds: int = 0
    steps: int = 0
    asked: int = 0
    """Prompts taken from the shuffled stream."""
    tokens: int = 0
    seconds: float = 0.0
    fruitless: int = 0
    """Consecutive rounds without any reward."""
    answers: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    """Of each prompt, if the order depends on it: number of answers, and the sum of their rewards."""

    @classmethod
    def from_state(cls, state: Mapping[str, Any] | None) -> OnPolicyProgress:
        """The progress in a checkpoint's state; zero without a checkpoint."""
        return cls() if state is None else cls(*(state[field.name] for field in dataclasses.fields(cls)))
