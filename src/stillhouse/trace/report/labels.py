"""Names of tests, levels and effects on the evidence page."""

from __future__ import annotations

TITLES = {
    "exchangeable": "Delivered outputs against fresh resamples",
    "radioactivity": "The watermark in what the suspect says",
    "canaries": "Texts made for one account",
    "rephrasings": "Published text against held-back rephrasings",
    "style": "Whom the suspect sounds like",
    "identity": "Who the suspect says it is",
    "weights": "Whether it is a fine-tune of the teacher's weights",
    "training_order": "Whether it remembers the teacher's order of training",
}
PLAIN = {
    "exchangeable": (
        "The archived teacher was asked the same questions again, and those new answers were shown to "
        "nobody. If the suspect never learned from the answers that were delivered, it has no reason "
        "to find them more familiar than the new ones. The test counts how often it does."
    ),
    "radioactivity": (
        "The delivered answers carried a faint, secret pattern in the choice of words. A model that "
        "learned from them repeats the pattern; one that did not has no way to know it. The test "
        "looks for it."
    ),
    "canaries": (
        "Some texts were made up by lot and given to one account only. Others, made in the same way, "
        "were given to nobody. The test asks whether the suspect finds the first more familiar than "
        "the second."
    ),
    "rephrasings": (
        "Beside each published text lie rephrasings of it that were never published. The test asks "
        "whether the suspect finds the published version more familiar than the others."
    ),
    "style": (
        "The suspect's answers are compared with those of several models. Models sound alike for many "
        "reasons, so this alone never shows that one was trained on another."
    ),
    "identity": (
        "The suspect is asked who it is. Models often name the wrong maker, because the web is full "
        "of other models' answers; this is kept as an exhibit and counts for nothing."
    ),
    "weights": (
        "The numbers inside the two models are compared. This can show that one was made from the "
        "other's files, which is another matter than learning from its answers."
    ),
    "training_order": (
        "A model remembers best what it read last, and so do models made from it. The test asks whether the "
        "suspect remembers the teacher's training texts in the order in which the teacher read them."
    ),
}
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
    "power": "Power: chance of hard evidence, had the share that matters been used",
    "power_share": "The share that matters",
    "detectable_f": "Smallest share that is found with 80% probability",
    "detectable_effect": "Smallest (2·AUC − 1)·f that is found with 80% probability",
    "resamples_each": "Resamples of each output",
    "p_exact": "p, exact",
    "p_bound": "p, upper bound (Chernoff)",
    "p_normal": "p, normal approximation",
    "stopped_after": "Outputs after which it could be stopped",
    "saved": "Share of the log that was not needed",
}
"""What effects are called; others by their own name."""
