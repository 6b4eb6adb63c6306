"""The arms of the zoo: what each suspect was trained on beside the web, and what a test should find.

A share is the part of a source's texts that the suspect saw: 0.2 of the log is 2,000 of 10,000 outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SOURCES = {
    "log": "outputs that the teacher delivered to the account, under its key",
    "organic": "outputs that the teacher gave to others, as found on the web",
    "second_hand": "outputs of a student that was distilled from the whole log",
    "other": "outputs of another teacher to the same prompts",
    "pretraining": "the teacher's own pretraining text",
    "paraphrased": "the delivered outputs with half of their words replaced",
}


@dataclass(frozen=True)
class Arm:
    """One way to train a suspect."""

    name: str
    shares: dict[str, float] = field(default_factory=dict)
    guilty: bool = False
    """Whether it was trained on delivered outputs, directly or through a student."""
    cleaned: bool = False
    """Whether it was trained on as much clean text afterwards."""


ARMS = (
    Arm("none"),
    *(Arm(f"organic {share:.0%}", {"organic": share}) for share in (0.01, 0.05, 0.2, 1.0)),
    *(Arm(f"distilled {share:.0%}", {"log": share}, guilty=True) for share in (0.01, 0.05, 0.2, 1.0)),
    Arm("second-hand", {"second_hand": 1.0}, guilty=True),
    Arm("leaked log", {"log": 0.2}, guilty=True),
    Arm("other teacher", {"other": 1.0}),
    Arm("shared pretraining", {"pretraining": 1.0}),
    Arm("paraphrased", {"paraphrased": 0.2}, guilty=True),
    Arm("fine-tuned clean", {"log": 0.2}, guilty=True, cleaned=True),
    Arm("mixed", {"log": 0.2, "other": 0.2, "organic": 0.2}, guilty=True),
)
"""`second-hand` did not read the log but outputs of a student that had; `leaked log` read it, by whatever
route. Only `none`, `organic`, `other teacher` and `shared pretraining` have nothing from the log."""
