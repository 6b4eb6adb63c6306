"""``still trace``: was a model trained on outputs that another delivered? Evidence with an error rate."""

from __future__ import annotations

import re
import shlex
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from stillhouse.cli import trace_before
from stillhouse.cli.options import Output, OutputFlags
from stillhouse.console import WIDTH, console
from stillhouse.errors import UsageError

if TYPE_CHECKING:
    from stillhouse.trace.plan import TracePlan

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
class Asked:
    """What a trace is about, where the plan does not say."""

    suspect: Annotated[str | None, Parameter(metavar="MODEL")] = None
    """The model in question."""
    teacher: Annotated[tuple[str, ...], Parameter(metavar="MODEL", negative="", show_default=False)] = ()
    """The model whose outputs it may have learned from; several are possible, each with its --log."""
    log: Annotated[tuple[str, ...], Parameter(metavar="FILE", negative="", show_default=False)] = ()
    """What the teacher delivered: parquet, a corpus directory, or JSON lines."""
    resamples: Annotated[tuple[str, ...], Parameter(metavar="FILE", negative="", show_default=False)] = ()
    """What `still trace resample` drew for that log; without it, it is drawn at once."""
    texts: Annotated[str | None, Parameter(metavar="FILE")] = None
    """For an author, instead of a log: your texts, of which `still trace draw` chose."""
    reference: Annotated[
        tuple[str, ...],
        Parameter(metavar="MODEL", negative="", show_default=False, consume_multiple=True),
    ] = ()
    """Models like the suspect that had nothing to do with it."""
    plan: Annotated[Path | None, Parameter(metavar="FILE")] = None
    """A plan; docs/trace-plan.md lists its keys."""
    out: Annotated[Path, Parameter(metavar="DIR")] = Path("evidence")
    """The bundle's directory."""


AskedOptions = Annotated[Asked, Parameter(name="*")]


def trace(
    *,
    asked: AskedOptions = Asked(),
    sign_key: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Test whether a model was trained on another's outputs; write evidence.

    Every number can be computed again from what is written (still trace verify).
    A trace that was stopped goes on when the same command is given again.

    Parameters
    ----------
    sign_key
        A private key made by `still trace key`; it signs the evidence.
    """
    plan = _plan(asked)
    from stillhouse.trace.bundle.signing import read_key
    from stillhouse.trace.run import run_trace

    key = None if sign_key is None else read_key(sign_key)
    evidence = run_trace(plan, asked.out, key=key, command=shlex.join(["still", *sys.argv[1:]]))
    _show(evidence)
    console.info(f"report: {asked.out / 'report.html'}")
    if key is None:
        console.hint("still trace key signing.pem, then --sign-key signing.pem signs the evidence.")


def commit(
    *,
    asked: AskedOptions = Asked(),
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Fix a trace's plan, logs, keys and code by their hashes, before the first query.

    The hash that is printed proves the time only if it is published where others
    keep the date.
    """
    plan = _plan(asked)
    from stillhouse.hashing import sha256_file
    from stillhouse.trace.bundle.commitments import COMMITMENTS, commit as make

    made = make(plan, asked.out)
    path = asked.out / COMMITMENTS
    digest = sha256_file(path)
    console.data({"file": str(path), "sha256": digest, **made.model_dump()})
    if not console.json:
        print(f"{digest}  {path}")
    console.hint("publish this hash, then give `still trace` the same options.")


def verify(
    directory: Annotated[Path, Parameter(metavar="DIR")],
    /,
    *,
    rerun: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    public_key: Annotated[str | None, Parameter(metavar="HEX")] = None,
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Check a bundle: signature, hashes, commitments, and every number again.

    No model is needed, except with --rerun.

    Parameters
    ----------
    directory
        What `still trace --out` wrote.
    rerun
        Ask the models again and compare with the transcripts.
    public_key
        The key that the evidence has to be signed with.
    """
    from stillhouse.trace.verify import require_verified, verify_bundle

    result = verify_bundle(directory, public_key=public_key)
    if rerun and not result.differences:
        from stillhouse.trace.rerun import rerun_bundle

        rerun_bundle(directory, result)
    require_verified(directory, result)
    console.data(result.facts())
    for note in result.notes:
        console.warn(note)
    if not console.json:
        print(
            f"{directory}: {result.checked} files are as recorded; {result.numbers:,} numbers computed again"
        )
        for teacher in result.evidence.teachers:
            print(f"{teacher.name}: {teacher.verdict.headline}")


SUBCOMMANDS = {
    **trace_before.SUBCOMMANDS,
    "commit": (commit, COMMIT_EXAMPLES),
    "verify": (verify, VERIFY_EXAMPLES),
}
"""The verbs below `still trace`, with their examples."""


def _plan(asked: Asked) -> TracePlan:
    """The resolved plan: that of --plan, or the default one, with what the options name."""
    from stillhouse.trace.plan import TeacherPlan, TracePlan, load_plan, plan_for_texts, resolve

    if asked.teacher and len(asked.teacher) != len(asked.log):
        raise UsageError(
            f"{len(asked.teacher)} teachers and {len(asked.log)} logs do not go together",
            hint="Give --teacher and --log in pairs, or --log alone where there is only a log.",
        )
    if asked.resamples and len(asked.resamples) != len(asked.log):
        raise UsageError("each --log needs its own --resamples", hint="Give them in the same order.")
    models = asked.teacher or (None,) * len(asked.log)
    drawn = asked.resamples or (None,) * len(asked.log)
    names = _names([model or log for model, log in zip(models, asked.log, strict=True)])
    teachers = [
        TeacherPlan(name=name, model=model, log=log, resamples=resamples)
        for name, model, log, resamples in zip(names, models, asked.log, drawn, strict=True)
    ]
    plan = TracePlan(name=asked.out.resolve().name) if asked.plan is None else load_plan(asked.plan)
    if asked.texts is not None:
        if asked.log or asked.plan:
            raise UsageError(
                "--texts is for a trace of its own, without --log and --plan",
                hint="In a plan, name the texts as `tests.rephrasings.texts`.",
            )
        plan = plan_for_texts(plan, asked.texts)
    return resolve(plan, suspect=asked.suspect, teachers=teachers, references=asked.reference)


def _names(references: list[str]) -> list[str]:
    """A short name for each: its last component, numbered where two are the same."""
    names: list[str] = []
    for reference in references:
        last = re.split(r"[/\\:#]", reference.rstrip("/\\"))[-1]
        name = (
            re.sub(r"[^\w.-]", "-", last.removesuffix(".parquet").removesuffix(".gguf")).lstrip(".-")
            or "teacher"
        )
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
    return names


def _show(evidence: Any) -> None:
    from stillhouse.pages.numbers import format_scientific

    rows = []
    for teacher in evidence.teachers:
        for part in teacher.tests:
            found = part.finding
            if found is None or found.reason is not None:
                why = part.hindrance or (found.reason if found else "")
                rows.append(
                    [
                        teacher.name,
                        part.test,
                        part.level,
                        "–",
                        "–",
                        f"not run: it {why}" if part.hindrance else why,
                    ]
                )
            else:
                rows.append(
                    [
                        teacher.name,
                        part.test,
                        part.level,
                        f"{found.n:,}",
                        format_scientific(found.p_value),
                        format_scientific(found.e_value),
                    ]
                )
    several = len(evidence.teachers) > 1
    columns = ["teacher", "test", "level", "n", "p", "E"]
    console.table(
        evidence.name, columns if several else columns[1:], rows if several else [row[1:] for row in rows]
    )
    if not console.json:
        for teacher in evidence.teachers:
            name = f"{teacher.name}: " if several else ""
            print(
                f"{name}{teacher.verdict.headline}", textwrap.fill(teacher.verdict.sentence, WIDTH), sep="\n"
            )
    console.data(evidence.model_dump())
