"""``still trace``: tests whether a model was trained on another's outputs, with a stated error rate."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from stillhouse.cli import trace_prepare
from stillhouse.cli.options import Output, OutputFlags
from stillhouse.console import console
from stillhouse.errors import UsageError

if TYPE_CHECKING:
    from stillhouse.trace import Evidence, TeacherPlan, TracePlan
    from stillhouse.trace.bundle.schema import PlannedTestRecord

USAGE = "Usage: still trace [OPTIONS]"
EXAMPLES = """\
Examples:
  still trace --suspect rival --teacher ours --log delivered.parquet
  still trace --plan plan.yaml --out evidence --sign-key signing.pem
  still trace --suspect rival.gguf --log log.parquet --resamples r.parquet
  still trace --suspect rival --texts texts.jsonl"""
COMMIT_EXAMPLES = """\
Examples:
  still trace commit --plan plan.yaml --out evidence
  still trace commit --suspect rival --teacher ours --log delivered.parquet"""
VERIFY_EXAMPLES = """\
Examples:
  still trace verify evidence
  still trace verify evidence --rerun
  still trace verify evidence --public-key 5f0c --json"""


@dataclass(frozen=True)
class TraceSubject:
    """Models, logs and files of a trace that the plan does not name."""

    suspect: Annotated[str | None, Parameter(metavar="MODEL")] = None
    """The model under test."""
    teacher: Annotated[tuple[str, ...], Parameter(metavar="MODEL", negative="", show_default=False)] = ()
    """The model whose outputs it may have been trained on; repeat it with one --log each."""
    log: Annotated[tuple[str, ...], Parameter(metavar="FILE", negative="", show_default=False)] = ()
    """The outputs that the teacher delivered: parquet, a corpus directory, or JSON lines."""
    resamples: Annotated[tuple[str, ...], Parameter(metavar="FILE", negative="", show_default=False)] = ()
    """Resamples of that log, made by `still trace resample`; drawn now by default."""
    texts: Annotated[str | None, Parameter(metavar="FILE")] = None
    """For authors, instead of a log: your texts, made by `still trace draw`."""
    reference: Annotated[
        tuple[str, ...],
        Parameter(metavar="MODEL", negative="", show_default=False, consume_multiple=True),
    ] = ()
    """Unrelated models of the suspect's kind."""
    plan: Annotated[Path | None, Parameter(metavar="FILE")] = None
    """The plan; docs/trace-plan.md lists its keys."""
    out: Annotated[Path, Parameter(metavar="DIR")] = Path("evidence")
    """Directory of the bundle."""


SubjectOptions = Annotated[TraceSubject, Parameter(name="*")]


def trace(
    *,
    subject: SubjectOptions = TraceSubject(),
    sign_key: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Test whether a model was trained on another's outputs; write evidence.

    Every number can be recomputed from the written files (still trace verify).
    To resume a trace that was interrupted, run the same command again.

    Parameters
    ----------
    sign_key
        Private key that signs the evidence, made by `still trace key`.
    """
    plan = _plan(subject)
    from stillhouse.trace import run_trace
    from stillhouse.trace.bundle.signing import read_key

    key = None if sign_key is None else read_key(sign_key)
    evidence = run_trace(plan, subject.out, key=key, command=shlex.join(["still", *sys.argv[1:]]))
    _show(evidence)
    console.info(f"report: {subject.out / 'report.html'}")
    if key is None:
        console.hint("to sign the evidence: still trace key signing.pem, then --sign-key signing.pem")


def commit(
    *,
    subject: SubjectOptions = TraceSubject(),
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Commit to a trace's plan, logs, keys and code by their hashes, before the first query.

    The printed hash proves the date only if you publish it where a third party
    records the date.
    """
    plan = _plan(subject)
    from stillhouse.hashing import sha256_file
    from stillhouse.trace.bundle.commitments import COMMITMENTS, commit as write_commitments
    from stillhouse.trace.run import read_teacher_log

    for teacher in plan.teachers:
        read_teacher_log(teacher)
    commitments = write_commitments(plan, subject.out)
    path = subject.out / COMMITMENTS
    digest = sha256_file(path)
    console.data({"file": str(path), "sha256": digest, **commitments.model_dump()})
    if not console.json:
        print(f"{digest}  {path}")
    console.hint("publish this hash, then run `still trace` with the same options.")


def verify(
    directory: Annotated[Path, Parameter(metavar="DIR")],
    /,
    *,
    rerun: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    public_key: Annotated[str | None, Parameter(metavar="HEX")] = None,
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Check a bundle: signature, hashes, commitments; recompute every number.

    Needs no model, except with --rerun.

    Parameters
    ----------
    directory
        Directory that `still trace --out` wrote.
    rerun
        Query the models again and compare the answers with the transcripts.
    public_key
        Key that the evidence must be signed with.
    """
    from stillhouse.trace import require_verified, rerun_bundle, verify_bundle
    from stillhouse.trace.bundle.files import EVIDENCE

    if not (directory / EVIDENCE).is_file():
        raise UsageError(
            f"{directory} is not a bundle of evidence: it contains no {EVIDENCE}",
            hint="Name the directory that `still trace --out` wrote.",
        )
    result = verify_bundle(directory, public_key=public_key)
    if rerun and not result.differences:
        rerun_bundle(directory, result)
    require_verified(directory, result)
    console.data(result.to_json())
    for note in result.notes:
        console.warn(note)
    console.text(
        f"{directory}: {result.checked} files are as recorded; {result.numbers:,} numbers recomputed"
    )
    for teacher in result.evidence.teachers:
        console.text(f"{teacher.name}: {teacher.verdict.headline}")


SUBCOMMANDS = {
    **trace_prepare.SUBCOMMANDS,
    "commit": (commit, COMMIT_EXAMPLES),
    "verify": (verify, VERIFY_EXAMPLES),
}
"""The commands below `still trace`, with their examples."""


def _plan(subject: TraceSubject) -> TracePlan:
    """The resolved plan: that of --plan, or the default one, completed from the options."""
    from stillhouse.trace import TracePlan, load_plan, plan_for_texts, resolve_plan

    teachers = _teachers(subject)
    plan = TracePlan(name=subject.out.resolve().name) if subject.plan is None else load_plan(subject.plan)
    if subject.texts is not None:
        if subject.log or subject.plan:
            raise UsageError(
                "--texts is for a trace of its own, without --log and --plan",
                hint="In a plan, name the texts as `tests.rephrasings.texts`.",
            )
        plan = plan_for_texts(plan, subject.texts)
    return resolve_plan(plan, suspect=subject.suspect, teachers=teachers, references=subject.reference)


def _teachers(subject: TraceSubject) -> list[TeacherPlan]:
    """One teacher for each --log, with the --teacher and --resamples at the same position."""
    from stillhouse.trace import TeacherPlan

    if subject.teacher and len(subject.teacher) != len(subject.log):
        raise UsageError(
            f"{len(subject.teacher)} teachers and {len(subject.log)} logs do not go together",
            hint="Give --teacher and --log in pairs, or --log alone if there is no teacher.",
        )
    if subject.resamples and len(subject.resamples) != len(subject.log):
        raise UsageError("each --log needs its own --resamples", hint="Give them in the same order.")
    models = subject.teacher or (None,) * len(subject.log)
    resamples = subject.resamples or (None,) * len(subject.log)
    names = _short_names([model or log for model, log in zip(models, subject.log, strict=True)])
    return [
        TeacherPlan(name=name, model=model, log=log, resamples=file)
        for name, model, log, file in zip(names, models, subject.log, resamples, strict=True)
    ]


def _short_names(references: list[str]) -> list[str]:
    """The last component of each reference, with a number appended to repeated ones."""
    from stillhouse.trace.plan import teacher_name

    names: list[str] = []
    for reference in references:
        name = teacher_name(reference)
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
    return names


def _show(evidence: Evidence) -> None:
    rows = [[teacher.name, *_row(test)] for teacher in evidence.teachers for test in teacher.tests]
    columns = ["teacher", "test", "level", "n", "p", "E"]
    first = 0 if len(evidence.teachers) > 1 else 1
    console.table(evidence.name, columns[first:], [row[first:] for row in rows])
    for teacher in evidence.teachers:
        prefix = f"{teacher.name}: " if first == 0 else ""
        console.text(f"{prefix}{teacher.verdict.headline}")
        console.text(teacher.verdict.sentence)
    console.data(evidence.model_dump())


def _row(test: PlannedTestRecord) -> list[str]:
    """Test, level, n, p and E; in place of E the reason if the test did not run."""
    from stillhouse.pages.numbers import format_scientific

    finding = test.finding
    if finding is None or finding.reason is not None:
        reason = f"not run: it {test.hindrance}" if finding is None else str(finding.reason)
        return [test.test, test.level, "–", "–", reason]
    p_value, e_value = format_scientific(finding.p_value), format_scientific(finding.e_value)
    return [test.test, test.level, f"{finding.n:,}", p_value, e_value]
