"""Which tests the given access allows, and what each of the others would need."""

from __future__ import annotations

from dataclasses import dataclass

from stillhouse.trace.plan import TeacherPlan, TracePlan


@dataclass(frozen=True)
class Access:
    """What there is to work with, for one teacher."""

    suspect: frozenset[str]
    """Of `generate`, `logprobs`, `weights`."""
    teacher: frozenset[str]
    """Of `model`, `weights`, `sampler` (one of ours, which can mark), `resamples`, `marked resamples` (with
    the watermark's key), `watermark key`, `canaries`, `placebo accounts`."""
    references: int
    """Reference models."""


def teacher_access(
    teacher: TeacherPlan, *, has_weights: bool, has_sampler: bool = False, marked_resamples: bool = False
) -> frozenset[str]:
    """What the plan gives of a teacher.

    Args:
        has_weights: whether its model is one whose weights are on this machine.
        has_sampler: whether they are safetensors, which are sampled here.
        marked_resamples: whether its file of resamples carries the mark of the watermark key.
    """
    given = {
        "model": teacher.model is not None,
        "weights": teacher.model is not None and has_weights,
        "sampler": teacher.model is not None and has_sampler,
        "resamples": teacher.resamples is not None,
        "marked resamples": marked_resamples,
        "watermark key": teacher.watermark_key is not None,
        "canaries": teacher.canaries is not None,
        "placebo accounts": bool(teacher.placebo_accounts),
    }
    return frozenset(name for name, there in given.items() if there)


def unmet_requirements(plan: TracePlan, access: Access) -> dict[str, str | None]:
    """Every planned test, with why it cannot run and what would let it; None where it can."""
    return {test: _CHECKS[test](plan, access) for test in plan.tests.wanted}


def _exchangeable(plan: TracePlan, access: Access) -> str | None:
    assert plan.tests.exchangeable is not None
    score = plan.tests.exchangeable.score
    if score == "overlap":
        missing = _suspect(access, "generate")
    else:
        missing = _suspect(access, "logprobs")
        missing = missing and f"{missing} With text only, plan `tests.exchangeable.score: overlap`."
    if missing is None and not access.teacher & {"model", "resamples"}:
        return "needs the archived teacher (--teacher), or resamples that it drew (--resamples)."
    if missing is None and "watermark key" in access.teacher:
        missing = _marked_resamples(plan, access)
    if missing is None and score == "reference" and not access.references:
        return "needs a reference model (--reference) for its score `reference`."
    if missing is None and score == "teacher" and "weights" not in access.teacher:
        return "needs the archived teacher on this machine (--teacher) for its score `teacher`."
    return missing


def _marked_resamples(plan: TracePlan, access: Access) -> str | None:
    if "resamples" in access.teacher:
        if "marked resamples" in access.teacher:
            return None
        return (
            "needs resamples that carry the log's watermark (`still trace resample --watermark`): these "
            "carry none or another, and whoever learned the mark anywhere would prefer what was delivered."
        )
    if plan.tests.radioactivity is None:
        return "needs the kind of the log's watermark (`tests.radioactivity` in the plan), to draw with it."
    if "sampler" not in access.teacher:
        return "needs the teacher's safetensors weights here, to draw resamples with the log's watermark."
    if "placebo accounts" in access.teacher:
        return (
            "needs resamples of the placebo accounts under their own keys "
            "(`still trace resample --watermark --watermark-by-account`)."
        )
    return None


def _radioactivity(plan: TracePlan, access: Access) -> str | None:
    assert plan.tests.radioactivity is not None
    if "watermark key" not in access.teacher:
        return "needs the key of the mark in the teacher's outputs (`watermark_key` in the plan)."
    if "weights" not in access.teacher:
        return "needs the teacher on this machine (--teacher): its tokenizer cuts the words that were marked."
    return _suspect(access, "weights" if plan.tests.radioactivity.mode == "open" else "generate")


def _canaries(plan: TracePlan, access: Access) -> str | None:
    if "canaries" not in access.teacher:
        return "needs the canaries that were given to the accounts (`canaries` in the plan)."
    return _suspect(access, "logprobs")


def _rephrasings(plan: TracePlan, access: Access) -> str | None:
    assert plan.tests.rephrasings is not None
    if plan.tests.rephrasings.texts is None:
        return "needs published texts with rephrasings (`tests.rephrasings.texts` in the plan)."
    return _suspect(access, "logprobs")


def _style(plan: TracePlan, access: Access) -> str | None:
    if access.references < 2:
        return "needs at least two reference models (--reference) to be compared with."
    return _suspect(access, "generate")


def _identity(plan: TracePlan, access: Access) -> str | None:
    return _suspect(access, "generate")


def _weights(plan: TracePlan, access: Access) -> str | None:
    if "weights" not in access.teacher:
        return "needs the teacher's weights on this machine."
    return _suspect(access, "weights")


def _training_order(plan: TracePlan, access: Access) -> str | None:
    assert plan.tests.training_order is not None
    if plan.tests.training_order.texts is None:
        return "needs the teacher's training texts in their order (`tests.training_order.texts` in the plan)."
    return _suspect(access, "logprobs")


_CHECKS = {
    "exchangeable": _exchangeable,
    "radioactivity": _radioactivity,
    "canaries": _canaries,
    "rephrasings": _rephrasings,
    "style": _style,
    "identity": _identity,
    "weights": _weights,
    "training_order": _training_order,
}
_LACKS = {
    "generate": "needs a suspect that answers.",
    "logprobs": "needs the suspect's log-probabilities of given text.",
    "weights": "needs the suspect's weights on this machine.",
}


def _suspect(access: Access, what: str) -> str | None:
    return None if what in access.suspect else _LACKS[what]
