"""The exchangeable test as a detector: what it needs, how it is put to a suspect, its placebo resamples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stillhouse.trace.access import Access
from stillhouse.trace.bundle.files import RESAMPLES
from stillhouse.trace.detectors.base import Detector, Placebo
from stillhouse.trace.detectors.case import Case
from stillhouse.trace.detectors.exchangeable.judge import LEVEL, NAME, judge
from stillhouse.trace.detectors.exchangeable.observe import observe
from stillhouse.trace.plan import TeacherPlan, TracePlan
from stillhouse.trace.resample import LogMark, Resamples, planned_mark, read_resamples, resample
from stillhouse.watermark import read_key


def _unmet_requirement(plan: TracePlan, access: Access) -> str | None:
    assert plan.tests.exchangeable is not None
    score = plan.tests.exchangeable.score
    if score == "overlap":
        missing = access.suspect_lacks("generate")
    else:
        missing = access.suspect_lacks("logprobs")
        missing = missing and f"{missing} With text only, plan `tests.exchangeable.score: overlap`."
    if missing is None and not access.teacher & {"model", "resamples"}:
        return "needs the archived teacher (--teacher), or resamples that it drew (--resamples)."
    if missing is None and "watermark key" in access.teacher:
        missing = _unmet_watermark_requirement(plan, access)
    if missing is None and score == "reference" and not access.references:
        return "needs a reference model (--reference) for its score `reference`."
    if missing is None and score == "teacher" and "weights" not in access.teacher:
        return "needs the archived teacher on this machine (--teacher) for its score `teacher`."
    return missing


def _unmet_watermark_requirement(plan: TracePlan, access: Access) -> str | None:
    """Why the resamples of a watermarked log cannot carry its mark too.

    Unmarked resamples would break exchangeability: a suspect that learned the mark anywhere prefers every
    marked text, delivered to these accounts or not.
    """
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


def _observe(case: Case) -> pa.Table:
    """The tested accounts, then each placebo account, until all outputs are asked or `stop_at` is reached."""
    plan, section, teacher = case.plan, case.plan.tests.exchangeable, case.teacher
    assert section is not None
    resamples = _resamples(case)
    logs = [case.log_of(teacher.accounts), *(case.log_of([account]) for account in teacher.placebo_accounts)]
    archived = teacher.model if section.score == "teacher" else None
    with case.open_reference() as reference, case.open(archived) as archived_teacher:
        tables = [
            observe(
                case.suspect,
                log,
                resamples,
                scores=[section.score],
                reference=reference,
                teacher=archived_teacher,
                seed=plan.seed,
                stop_at=plan.stop_at,
                public=_public_texts(plan),
                journal=case.journal(NAME, number),
            )
            for number, log in enumerate(logs)
        ]
    return pa.concat_tables(tables).replace_schema_metadata(tables[0].schema.metadata)


def _resamples(case: Case) -> Resamples:
    """The resamples that the plan names; without any they are drawn now, into the bundle."""
    plan, section, teacher = case.plan, case.plan.tests.exchangeable, case.teacher
    assert section is not None
    if teacher.resamples is not None:
        return read_resamples(teacher.resamples, {"log": case.log.hash})
    assert teacher.model is not None
    watermark, mark = plan.tests.radioactivity, None
    if teacher.watermark_key is not None and watermark is not None:
        mark = LogMark(planned_mark(watermark, read_key(teacher.watermark_key)))
    path = case.directory / RESAMPLES / f"{teacher.name}.parquet"
    return resample(teacher.model, case.log, section.draws, plan.seed, path, mark=mark)


def _public_texts(plan: TracePlan) -> Iterator[str] | None:
    if not plan.public:
        return None
    return (Path(path).read_text("utf-8", "replace") for path in plan.public)


def _parameters(plan: TracePlan, teacher: TeacherPlan, secrets: Mapping[str, bytes]) -> dict[str, Any]:
    section = plan.tests.exchangeable
    assert section is not None
    auc = section.surrogate_auc
    return {
        "score": section.score,
        "surrogate_auc": [min(auc), max(auc)] if auc else None,
        "stop_at": plan.stop_at,
        "share": plan.share,
        "hard": plan.hard,
    }


def _placebos(plan: TracePlan, transcript: pa.Table, parameters: Mapping[str, Any]) -> Iterator[Placebo]:
    rng = np.random.default_rng(plan.seed)
    for number in range(1, plan.placebos + 1):
        relabelled = relabel_resample_as_delivered(transcript, rng)
        if relabelled is not None:
            yield Placebo(f"resample {number}", relabelled, parameters)


def relabel_resample_as_delivered(transcript: pa.Table, rng: np.random.Generator) -> pa.Table | None:
    """The transcript with a random resample of each output labelled as delivered, and the output left out.

    Under any hypothesis the resamples of one output are exchangeable among each other, so this is a test with
    nothing to find. None where an output has fewer than two resamples left to compare.
    """
    draws_N = transcript["draw"].to_numpy()
    ids_N = np.unique(transcript["id"].to_numpy(zero_copy_only=False), return_inverse=True)[1]
    is_resample_N = draws_N > 0
    priorities_N = np.where(is_resample_N, rng.random(len(draws_N)), -1.0)
    order = np.lexsort((priorities_N, ids_N))
    last_of_id = np.r_[ids_N[order][1:] != ids_N[order][:-1], True] if len(order) else np.zeros(0, bool)
    chosen_N = np.zeros(len(draws_N), bool)
    chosen_N[order[last_of_id]] = True
    if not is_resample_N.any() or np.bincount(ids_N[is_resample_N]).max(initial=0) < 2:
        return None
    new_draws_N = np.where(chosen_N, 0, draws_N)
    index = transcript.column_names.index("draw")
    column = pa.array(new_draws_N, transcript.schema.field("draw").type)
    return transcript.set_column(index, "draw", column).filter(pa.array(is_resample_N))


EXCHANGEABLE = Detector(
    name=NAME,
    level=LEVEL,
    title="Delivered outputs against fresh resamples",
    explanation=(
        "The archived teacher was asked the same questions again, and those new answers were shown to "
        "nobody. If the suspect never learned from the answers that were delivered, it has no reason "
        "to find them more familiar than the new ones. The test counts how often it does."
    ),
    unmet_requirement=_unmet_requirement,
    observe=_observe,
    judge=judge,
    parameters=_parameters,
    placebos=_placebos,
)
