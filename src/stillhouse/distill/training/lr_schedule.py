"""Learning rates over a run, as shares of the peak.

Pure arithmetic; the optimizer is set elsewhere.
"""

from __future__ import annotations

import math

from stillhouse.recipe import Train


def learning_rate_factor(step: int, total: int, settings: Train) -> float:
    """The learning rate of ``step`` (0-based, of ``total``) as a share of the peak.

    The first ``round(warmup * total)`` steps rise in equal parts and reach the peak in the last of them. Then
    ``wsd`` (warm-up, stable, decay) stays and falls in a straight line over the last ``round(decay * total)``
    steps (Hu et al. 2024, MiniCPM; here the fall is linear), ``cosine`` falls by half a cosine over all that
    is left (Loshchilov & Hutter 2017, equation 5, without restarts), ``constant`` stays. A fall begins at the
    peak and would reach ``min_rate`` in the step after the last, so that no step is spent at rate 0.
    """
    warmup_steps = round(settings.warmup * total)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "cosine":
        fallen = (step - warmup_steps) / (total - warmup_steps)
        return settings.min_rate + (1 - settings.min_rate) * 0.5 * (1 + math.cos(math.pi * fallen))
    decay_steps = min(round(settings.decay * total), total - warmup_steps)
    fallen = max(0, step - (total - decay_steps)) / decay_steps if decay_steps else 0.0
    return 1 - (1 - settings.min_rate) * fallen
