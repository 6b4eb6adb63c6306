"""The arms of the zoo: what each suspect was trained on beside the web, and what a test ought to say of it.

A share is that of a source's texts which the suspect saw: 0.2 of the log is 2,000 of 10,000 outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SOURCES = {
    "log": "outputs that the teacher delivered to the account, under its key",
    "organic": "outputs that the teacher gave to others, as the web has them",
    "second_hand": "outputs of a student that was distilled from the whole log",
    "other": "outputs of another teacher to the same prompts",
    "pretraining": "the teacher's own pretraining text",
    "paraphrased": "the delivered outputs with half of their words exchanged",
}


@dataclass(frozen=True)
class Arm:
    """One way to raise a suspect."""

    name: str
    shares: dict[str, float] = field(default_factory=dict)
    guilty: bool = False
    """Whether delivered outputs were trained on, themselves or as somebody else passed them on."""
    cleaned: bool = False
    """Trained on as much clean text again afterwards."""


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
"""`second-hand` did not read the log, but a student that had read it passes some on; `leaked log` read it,
whoever passed it on. Only `none`, `organic`, `other teacher` and `shared pretraining` owe the log nothing."""
