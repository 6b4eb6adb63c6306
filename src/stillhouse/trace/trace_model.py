"""A trace from Python."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stillhouse.errors import UsageError
from stillhouse.trace.bundle.schema import Evidence
from stillhouse.trace.plan import TeacherPlan, TracePlan, load_plan, resolve_plan, teacher_name
from stillhouse.trace.run import run_trace


def trace(
    suspect: str | None = None,
    log: str | os.PathLike[str] | None = None,
    *,
    directory: str | os.PathLike[str] = "evidence",
    teacher: str | None = None,
    resamples: str | os.PathLike[str] | None = None,
    references: Sequence[str] = (),
    plan: str | os.PathLike[str] | TracePlan | None = None,
    sign_key: str | os.PathLike[str] | None = None,
) -> Evidence:
    """Tests whether a model was trained on outputs that another delivered; writes a bundle of evidence.

    Example::

        evidence = st.trace("rival", "delivered.parquet", teacher="ours", directory="evidence")
        evidence.teachers[0].verdict.headline

    An interrupted trace resumes with the same call, and `still trace verify` recomputes every number. The
    plan is committed before the first query.

    Args:
        suspect: the model under test: a directory, file.gguf, `hub:…` or `api:…`.
        log: the outputs that the teacher delivered: parquet, a corpus directory, or JSON lines.
        directory: of the bundle.
        teacher: the model that delivered them; not needed with ``resamples``.
        resamples: further answers of the teacher to the same prompts, made by `still trace resample`.
        references: unrelated models of the suspect's kind.
        plan: a plan, or its file (docs/trace-plan.md), for other tests, thresholds and seeds.
        sign_key: private key that signs the evidence, made by `still trace key`.

    Returns:
        The evidence: for each of ``teachers`` its ``tests`` with p-values and e-values, and the ``verdict``.

    Raises:
        UsageError, RecipeError: the plan is incomplete or contradicts itself.
        IntegrityError: the directory holds commitments to another trace.
        StillhouseError: a model, log or key is missing or unusable.
    """
    directory = Path(directory)
    if teacher is not None and log is None:
        raise UsageError("a teacher needs the log of its outputs", hint="st.trace(suspect, log, teacher=…)")
    base: Any = plan
    if plan is None:
        base = TracePlan(name=directory.resolve().name)
    elif not isinstance(plan, TracePlan):
        base = load_plan(Path(plan))
    teachers = []
    if log is not None:
        name = teacher_name(teacher or os.fspath(log))
        more = None if resamples is None else os.fspath(resamples)
        teachers.append(TeacherPlan(name=name, model=teacher, log=os.fspath(log), resamples=more))
    resolved = resolve_plan(base, suspect=suspect, teachers=teachers, references=tuple(references))
    key = None
    if sign_key is not None:
        from stillhouse.trace.bundle.signing import read_key

        key = read_key(Path(sign_key))
    return run_trace(resolved, directory, key=key, command="stillhouse.trace()")
