"""Learning rate schedules: the factor of the peak rate at each step.

Pure arithmetic; ``Learner.update`` sets the optimizer's rate.
"""

from __future__ import annotations

import math

from stillhouse.recipe import Train


def learning_rate_factor(step: int, total: int, settings: Train) -> float:
    """The learning rate of ``step`` (0-based, of ``total``) divided by the peak.

    The first ``round(warmup * total)`` steps rise linearly and reach the peak in the last of them. Then
    ``wsd`` (warm-up, stable, decay) stays and falls linearly over the last ``round(decay * total)`` steps (Hu
    et al. 2024, MiniCPM; here the decay is linear), ``cosine`` falls by half a cosine over all steps left
    (Loshchilov & Hutter 2017, equation 5, without restarts), ``constant`` stays. The decay starts at the peak
    and would reach ``min_rate`` in the step after the last, so that no step has rate 0.
    """
    warmup_steps = round(settings.warmup * total)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "cosine":
        decayed = (step - warmup_steps) / (total - warmup_steps)
        return settings.min_rate + (1 - settings.min_rate) * 0.5 * (1 + math.cos(math.pi * decayed))
    decay_steps = min(round(settings.decay * total), total - warmup_steps)
    decayed = max(0, step - (total - decay_steps)) / decay_steps if decay_steps else 0.0
    return 1 - (1 - settings.min_rate) * decayed
