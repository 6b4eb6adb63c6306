"""What a trace has access to: the suspect, each teacher, and the reference models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stillhouse.trace.plan import TeacherPlan

_SUSPECT_LACKS = {
    "generate": "needs a suspect that answers.",
    "logprobs": "needs the suspect's log-probabilities of given text.",
    "weights": "needs the suspect's weights on this machine.",
}


@dataclass(frozen=True)
class Access:
    """What is available for tests about one teacher."""

    suspect: frozenset[str]
    """A subset of `generate`, `logprobs`, `weights`."""
    teacher: frozenset[str]
    """A subset of `model`, `weights`, `sampler` (safetensors weights, whose samples can be watermarked here),
    `resamples`, `marked resamples` (with the watermark's key), `watermark key`, `canaries`,
    `placebo accounts`."""
    references: int
    """Number of reference models."""

    def suspect_lacks(self, capability: Literal["generate", "logprobs", "weights"]) -> str | None:
        """The requirement that the suspect does not meet; None where it has the capability."""
        return None if capability in self.suspect else _SUSPECT_LACKS[capability]


def teacher_access(
    teacher: TeacherPlan, *, has_weights: bool, has_sampler: bool = False, marked_resamples: bool = False
) -> frozenset[str]:
    """What the plan provides of a teacher, as in :attr:`Access.teacher`.

    Args:
        has_weights: whether the weights of its model are on this machine.
        has_sampler: whether they are safetensors, which are sampled here.
        marked_resamples: whether its file of resamples carries the mark of the watermark key.
    """
    available = {
        "model": teacher.model is not None,
        "weights": teacher.model is not None and has_weights,
        "sampler": teacher.model is not None and has_sampler,
        "resamples": teacher.resamples is not None,
        "marked resamples": marked_resamples,
        "watermark key": teacher.watermark_key is not None,
        "canaries": teacher.canaries is not None,
        "placebo accounts": bool(teacher.placebo_accounts),
    }
    return frozenset(name for name, is_available in available.items() if is_available)
