"""Curriculum: which prompts a round uses, by how often the student's answers to them are right.

A group whose samples are all right or all wrong has no gradient, and the variance of a right-or-wrong reward
is p (1 − p): prompts with a pass rate near one half teach most. Kimi k1.5 (arXiv:2501.12599, section 2.3.4)
takes easy prompts first and samples those with a low success rate more often; here the weight is p (1 − p),
so that prompts that are never right are rare too.

Pass rates are estimated during the run, from its own samples. Nothing here samples from a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

PRIOR = 2.0
"""Pseudo-answers of each prompt, at its previously measured rate or one half."""
LEAST_WEIGHT = 0.01
"""Lower bound of a prompt's weight p (1 − p), which is at most 0.25: no prompt is dropped for good."""


@dataclass(frozen=True)
class PassRates:
    """Pass rates of prompts, by id.

    Args:
        before: rates from 0 to 1 that were measured before the run, where known.
        answers: number of the student's answers, and the sum of their rewards (each from 0 to 1).
    """

    before: Mapping[str, float] = field(default_factory=dict)
    answers: Mapping[str, tuple[int, float]] = field(default_factory=dict)

    def rate(self, id: str) -> float:
        """The estimate, (rewards + 2 · before) / (answers + 2): the mean of a beta distribution."""
        count, total = self.answers.get(id, (0, 0.0))
        return (total + PRIOR * self.before.get(id, 0.5)) / (count + PRIOR)

    def after(self, ids: Sequence[str], rewards: Sequence[float]) -> PassRates:
        """Adds the answers of a round, one reward each."""
        answers = dict(self.answers)
        for id, reward in zip(ids, rewards, strict=True):
            count, total = answers.get(id, (0, 0.0))
            answers[id] = (count + 1, total + min(max(reward, 0.0), 1.0))
        return PassRates(self.before, answers)

    def order(self, ids: Sequence[str], how: str, rng: np.random.Generator) -> list[int]:
        """Indices into ``ids`` in the order in which a round takes prompts, as many as it needs.

        ``uncertain``: sampled without replacement, each next one with a probability proportional to p (1 − p)
        among those left (by sorting Gumbel keys, as Efraimidis & Spirakis 2006 do with exponential ones).
        ``easy_first``: least often used first, then highest rate; ties in random order.
        """
        rates = np.array([self.rate(id) for id in ids])
        if how == "uncertain":
            weights = np.maximum(rates * (1 - rates), LEAST_WEIGHT)
            return np.argsort(-(np.log(weights) + rng.gumbel(size=len(ids))), kind="stable").tolist()
        assert how == "easy_first"
        times = np.array([self.answers.get(id, (0, 0.0))[0] for id in ids])
        return np.lexsort((rng.random(len(ids)), -rates, times)).tolist()
