"""A surrogate: a model trained on a teacher's outputs on purpose, to measure the trace that training leaves.

Its AUC, how often it ranks an output that it read above a resample, turns an inconclusive result into a bound
on the share of a log that was used. It also gives the log size from which use can be found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stillhouse.errors import CorpusError
from stillhouse.stats import delivered_win_rates, log_size, resample_counts, usable_items
from stillhouse.trace.delivered_log import Log
from stillhouse.trace.detectors.exchangeable.judge import mean_lower_bound
from stillhouse.trace.detectors.exchangeable.observe import observe
from stillhouse.trace.detectors.exchangeable.scores import find_score, score_matrix
from stillhouse.trace.resample import Resamples
from stillhouse.trace.suspects.base import Suspect

SHARES = (0.01, 0.05, 0.2, 1.0)
"""Used shares of a log for which :meth:`SurrogateAuc.sizes` gives a log size."""


@dataclass(frozen=True)
class SurrogateAuc:
    """How well a score separates outputs that a model read from their resamples."""

    n: int
    """Outputs that it read and that were ranked."""
    resamples_each: float
    auc: float
    """The chance that an output that was read outranks a resample of it; ties count a half."""
    low: float
    high: float
    """Ends of an interval that holds in finite samples, for a plan's `surrogate_auc`."""

    @property
    def is_informative(self) -> bool:
        """Whether a plan can use it: the score separates used outputs from resamples."""
        return self.low > 0.5

    def sizes(self, e_target: float, power: float) -> dict[float, int]:
        """Share of a log -> delivered outputs with which E reaches ``e_target`` with chance ``power``.

        Computed from the lower end of the interval; empty if that is not above one half. A share for which
        no log is large enough is omitted.
        """
        if not self.is_informative:
            return {}
        sizes = {share: log_size(share, self.low, self.resamples_each, e_target, power) for share in SHARES}
        return {share: size for share, size in sizes.items() if size is not None}


def measure_surrogate(
    model: Suspect,
    used: Log,
    resamples: Resamples,
    *,
    score: str = "loglik",
    reference: Suspect | None = None,
    teacher: Suspect | None = None,
    seed: int = 0,
    alpha: float = 0.05,
) -> SurrogateAuc:
    """Scores outputs that the surrogate was trained on, and their resamples.

    Args:
        used: outputs that it was trained on, and no others.
        score: a name in :data:`.scores.SCORES`.
        reference: for the score `reference`.
        teacher: for the score `teacher`.
        alpha: one minus the confidence of the interval.

    Raises:
        CorpusError: no output has a resample and a score.
    """
    transcript = observe(
        model, used, resamples, scores=[score], reference=reference, teacher=teacher, seed=seed
    )
    scores_NK1 = usable_items(score_matrix(transcript, find_score(score)).scores_NK1)
    if not len(scores_NK1):
        raise CorpusError(
            "no output has both a score and a resample of its own",
            hint="Give the resamples that were drawn for this log (still trace resample).",
        )
    wins_N = delivered_win_rates(scores_NK1)
    return SurrogateAuc(
        n=len(scores_NK1),
        resamples_each=float(np.mean(resample_counts(scores_NK1))),
        auc=float(wins_N.mean()),
        low=mean_lower_bound(wins_N, alpha / 2),
        high=1.0 - mean_lower_bound(1.0 - wins_N, alpha / 2),
    )
