"""Which prompts a round asks, by how often the student's answers to them are right.

A group whose samples are all right or all wrong teaches nothing, and the variance of a right-or-wrong
reward is p (1 − p): prompts near a pass rate of one half teach most. Kimi k1.5 (arXiv:2501.12599, section
2.3.4) asks easy prompts first and draws those with a low success rate more often; here the weight is p (1 −
p), so that what is never right is left alone too.

Rates are measured as the run goes on, from its own samples. Nothing here samples from a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

PRIOR = 2.0
"""A prompt begins with so many imaginary answers, at the rate measured before or one half."""
LEAST_WEIGHT = 0.01
"""Of a prompt beside p (1 − p) of at most 0.25, so that none is given up for good."""


@dataclass(frozen=True)
class PassRates:
    """What is known of each prompt, by its id.

    Args:
        before: rates from 0 to 1 that were measured before the run, where there are any.
        answers: how many answers the student has given, and the sum of their rewards (from 0 to 1).
    """

    before: Mapping[str, float] = field(default_factory=dict)
    answers: Mapping[str, tuple[int, float]] = field(default_factory=dict)

    def rate(self, id: str) -> float:
        """The estimate, (rewards + 2 · before) / (answers + 2): a beta distribution's mean."""
        count, total = self.answers.get(id, (0, 0.0))
        return (total + PRIOR * self.before.get(id, 0.5)) / (count + PRIOR)

    def after(self, ids: Sequence[str], rewards: Sequence[float]) -> PassRates:
        """With the answers of a round counted in, one reward each."""
        known = dict(self.answers)
        for id, reward in zip(ids, rewards, strict=True):
            count, total = known.get(id, (0, 0.0))
            known[id] = (count + 1, total + min(max(reward, 0.0), 1.0))
        return PassRates(self.before, known)

    def order(self, ids: Sequence[str], how: str, rng: np.random.Generator) -> list[int]:
        """Places of ``ids`` in the order in which a round takes them: as many as it wants, from the front.

        ``uncertain``: drawn without replacement, each next one with a probability in proportion to p (1 − p)
        among those left (by sorting Gumbel keys, as Efraimidis & Spirakis 2006 do with exponential ones).
        ``easy_first``: those asked least often, and of these the one with the highest rate, ties by lot.
        """
        rates = np.array([self.rate(id) for id in ids])
        if how == "uncertain":
            weights = np.maximum(rates * (1 - rates), LEAST_WEIGHT)
            return np.argsort(-(np.log(weights) + rng.gumbel(size=len(ids))), kind="stable").tolist()
        assert how == "easy_first"
        times = np.array([self.answers.get(id, (0, 0.0))[0] for id in ids])
        return np.lexsort((rng.random(len(ids)), -rates, times)).tolist()
