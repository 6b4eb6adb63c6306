"""pass@k, majority vote and means over prompts, from several answers to each prompt.

Prompts are the sampled unit; answers are draws within a prompt.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stillhouse.stats.intervals import student_t


def pass_at_k(answers: int, right: int, k: int) -> float:
    """The chance that at least one of ``k`` answers is right: 1 − C(n − c, k) / C(n, k).

    The unbiased estimator from n answers of which c are right (Chen et al. 2021, "Evaluating
    Large Language Models Trained on Code", arXiv:2107.03374, equation 1).
    """
    assert 0 <= right <= answers and 1 <= k <= answers
    return 1.0 - math.comb(answers - right, k) / math.comb(answers, k)


def majority(votes: Sequence[str | None], rewards: Sequence[float], least: float = 1.0) -> float:
    """The chance that a majority vote is right, with ties broken at random (cons@k with all k answers).

    Self-consistency of Wang et al. 2022, arXiv:2203.11171. An answer is right with a reward of
    at least ``least``. If equal answers were judged differently, the share of right ones counts.

    Args:
        votes: [k] the answer that each vote is for; None does not vote.
        rewards: [k] in the same order.
    """
    assert len(votes) == len(rewards)
    counts = Counter(vote for vote in votes if vote is not None)
    if not counts:
        return 0.0
    most = max(counts.values())
    shares = [
        sum(reward >= least for vote, reward in zip(votes, rewards, strict=True) if vote == winner) / most
        for winner, count in counts.items()
        if count == most
    ]
    return sum(shares) / len(shares)


@dataclass(frozen=True)
class Mean:
    """A mean over prompts and its interval; ``low`` and ``high`` are None with fewer than two prompts."""

    value: float
    low: float | None
    high: float | None
    prompts: int

    def to_dict(self) -> dict[str, Any]:
        """The form of a run's manifest."""
        return {"value": self.value, "low": self.low, "high": self.high, "prompts": self.prompts}


def mean_over_prompts(values: Sequence[float], confidence: float = 0.95) -> Mean:
    """The mean of one value for each prompt, with Student's t over prompts, cut to [0, 1]."""
    count = len(values)
    assert count
    mean = sum(values) / count
    if count < 2:
        return Mean(mean, None, None, count)
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    half_width = student_t(confidence, count - 1) * math.sqrt(variance / count)
    return Mean(mean, max(0.0, mean - half_width), min(1.0, mean + half_width), count)
