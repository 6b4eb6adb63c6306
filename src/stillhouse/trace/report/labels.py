"""Names of levels and effects on the evidence page; a detector names itself."""

from __future__ import annotations

LEVELS = {
    "L0": "sounds like the teacher; never evidence of training",
    "L1": "exposed to the teacher's outputs, by whatever route",
    "L2": "trained on outputs delivered to these accounts",
    "exhibit": "shows nothing by itself",
    "weights": "made from the teacher's own weights",
}
LEVEL_OF_TEXTS = "trained on these texts as they were published"
EFFECTS = {
    "auc": "AUC: how often a delivered output outranks a resample (½ without training)",
    "f": "Share f of the log that was used",
    "power": "Power: chance of hard evidence if the share of interest was used",
    "power_share": "Share of interest",
    "detectable_f": "Smallest share that is found with 80% probability",
    "detectable_effect": "Smallest (2·AUC − 1)·f that is found with 80% probability",
    "resamples_each": "Resamples of each output",
    "p_exact": "p, exact",
    "p_bound": "p, upper bound (Chernoff)",
    "p_normal": "p, normal approximation",
    "stopped_after": "Outputs after which the test could stop",
    "saved": "Share of the log that was not needed",
}
"""Names of effects; an effect that is not listed is shown by its key."""
