"""``still trace``: was a model trained on outputs that another delivered? Evidence with an error rate."""

from __future__ import annotations

import re
import shlex
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ..console import WIDTH, console
from ..errors import UsageError
from .options import Output, OutputFlags

if TYPE_CHECKING:
    from ..trace.plan import Plan

USAGE = "Usage: still trace [OPTIONS]"
EXAMPLES = """\
Examples:
  still trace --suspect rival --teacher ours --log delivered.parquet
  still trace --plan plan.yaml --out evidence --sign-key signing.pem
  still trace --suspect rival.gguf --log log.parquet --resamples r.parquet"""
COMMIT_EXAMPLES = """\
Examples:
  still trace commit --plan plan.yaml --out evidence
  still trace commit --suspect rival --teacher ours --log delivered.parquet"""
RESAMPLE_EXAMPLES = """\
Examples:
  still trace resample --teacher ours --log delivered.parquet --out r.parquet
  still trace resample --teacher ours --log log.parquet --draws 5 --seed 7
  still trace resample --teacher ours --log log.parquet --watermark mark.key"""
SURROGATE_EXAMPLES = """\
Examples:
  still trace surrogate --model ours-2 --log used.parquet --resamples r.parquet
  still trace surrogate --model m --log u.jsonl --resamples r.parquet --json"""
VERIFY_EXAMPLES = """\
Examples:
  still trace verify evidence
  still trace verify evidence --rerun
  still trace verify evidence --public-key 5f0c --json"""
KEY_EXAMPLES = """\
Examples:
  still trace key signing.pem
  still trace key signing.pem --json"""


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
    from ..trace.run import run_trace
    from ..trace.signing import read_key

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
    from ..hashing import sha256_file
    from ..trace.commit import COMMITMENTS
    from ..trace.commit import commit as make

    made = make(plan, asked.out)
    path = asked.out / COMMITMENTS
    digest = sha256_file(path)
    console.data({"file": str(path), "sha256": digest, **made.model_dump()})
    if not console.json:
        print(f"{digest}  {path}")
    console.hint("publish this hash, then give `still trace` the same options.")


def resample(
    *,
    teacher: Annotated[str, Parameter(metavar="MODEL")],
    log: Annotated[str, Parameter(metavar="FILE")],
    draws: Annotated[int, Parameter(metavar="N")] = 3,
    seed: int = 0,
    watermark: Annotated[Path | None, Parameter(metavar="KEYFILE")] = None,
    watermark_by_account: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    allow_other_teacher: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    out: Annotated[Path, Parameter(metavar="FILE")] = Path("resamples.parquet"),
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Draw fresh outputs of the archived teacher for the prompts of a log.

    They are shown to nobody, and are what delivered outputs are compared with.

    Parameters
    ----------
    teacher
        The archived model that wrote the log.
    log
        What it delivered.
    draws
        Fresh outputs for each delivered one.
    seed
        Of the draws.
    watermark
        Mark them with this key as `still serve --watermark` does: for a log that was
        marked so.
    watermark_by_account
        The key is a master key; each account of the log has its own, made from it.
    allow_other_teacher
        Go on although the log names another version of the teacher; the report says so.
    out
        The file; begun work is taken up again.
    """
    if draws < 1:
        raise UsageError("--draws must be at least 1")
    if watermark_by_account and watermark is None:
        raise UsageError("--watermark-by-account needs the master key", hint="Give it with --watermark.")
    from ..hashing import sha256_file
    from ..trace.log import read_log
    from ..trace.resample import LogMark
    from ..trace.resample import resample as draw
    from ..watermark import Mark, read_key

    delivered = read_log(log)
    mark = LogMark(Mark(read_key(watermark)), watermark_by_account) if watermark else None
    drawn = draw(teacher, delivered, draws, seed, out, mark=mark, allow_other_teacher=allow_other_teacher)
    count = sum(map(len, drawn.texts.values()))
    digest = sha256_file(out)
    facts = {"file": str(out), "sha256": digest, "outputs": len(delivered.rows), "resamples": count}
    console.data(facts | {"failed": drawn.failed, "left_out": delivered.left_out})
    for reason, number in delivered.left_out.items():
        console.info(f"left out: {number:,} {reason}")
    if not console.json:
        print(f"{out}: {count:,} resamples of {len(delivered.rows):,} outputs, SHA-256 {digest}")


def surrogate(
    *,
    model: Annotated[str, Parameter(metavar="MODEL")],
    log: Annotated[str, Parameter(metavar="FILE")],
    resamples: Annotated[Path, Parameter(metavar="FILE")],
    score: Literal["loglik", "min_k", "reference", "overlap"] = "loglik",
    reference: Annotated[str | None, Parameter(metavar="MODEL")] = None,
    hard: float = 1000.0,
    seed: int = 0,
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Measure what training on outputs leaves behind, on a model of your own.

    Train a small model on some of the teacher's outputs on purpose; this tells how
    often it ranks one above its resamples, and how large a log must be to show use.

    Parameters
    ----------
    model
        The surrogate: a model that was trained on the outputs in --log.
    log
        Outputs that it was trained on, and no others.
    resamples
        What `still trace resample` drew for them.
    score
        What they are ranked by, as in the plan.
    reference
        A model that had nothing to do with them, for the score `reference`.
    hard
        The e-value that a log is to reach.
    seed
        Of the order in which outputs are asked.
    """
    from ..trace.exchangeable import POWER
    from ..trace.log import read_log
    from ..trace.resample import read_resamples
    from ..trace.surrogate import measure
    from ..trace.suspect import open_suspect

    opened = open_suspect(model, seed=seed)
    other = None if reference is None else open_suspect(reference, seed=seed)
    try:
        held = read_resamples(resamples)
        found = measure(opened, read_log(log), held, score=score, reference=other, seed=seed)
    finally:
        opened.close()
        if other:
            other.close()
    sizes = found.sizes(hard, POWER)
    facts = {"outputs": found.n, "auc": found.auc, "surrogate_auc": [found.low, found.high]}
    console.data(facts | {"sizes": {str(share): size for share, size in sizes.items()}})
    if console.json:
        return
    print(
        f"AUC {found.auc:.3f} [{found.low:.3f}, {found.high:.3f}], 95%, from {found.n:,} outputs with "
        f"{found.resamples_each:.3g} resamples each"
    )
    if not found.tells:
        print("The score does not tell them apart: it can bound nothing.")
        return
    rows = [[f"{share:.0%}", f"{size:,}"] for share, size in sizes.items()]
    console.table(f"log size for E ≥ {hard:,.0f} with {POWER:.0%} chance", ["share used", "outputs"], rows)
    print(f"For the plan: surrogate_auc: [{found.low:.3f}, {found.high:.3f}]")


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
    from ..trace.verify import require_verified, verify_bundle

    result = verify_bundle(directory, public_key=public_key)
    if rerun and not result.differences:
        from ..trace.rerun import rerun_bundle

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


def key(
    file: Annotated[Path, Parameter(metavar="FILE")],
    /,
    *,
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Make a private key for signing evidence; print its public half.

    Parameters
    ----------
    file
        Where the private key is written, readable by you only.
    """
    from ..trace.signing import make_key

    public = make_key(file)
    console.data({"file": str(file), "public_key": public})
    if not console.json:
        print(public)
    console.hint("publish the public key; keep the file to yourself.")


PARTS = {
    "resample": (resample, RESAMPLE_EXAMPLES),
    "surrogate": (surrogate, SURROGATE_EXAMPLES),
    "commit": (commit, COMMIT_EXAMPLES),
    "verify": (verify, VERIFY_EXAMPLES),
    "key": (key, KEY_EXAMPLES),
}
"""The verbs below `still trace`, with their examples."""


def _plan(asked: Asked) -> Plan:
    """The resolved plan: that of --plan, or the default one, with what the options name."""
    from ..trace.plan import Plan, TeacherPlan, load_plan, resolve

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
    plan = Plan(name=asked.out.resolve().name) if asked.plan is None else load_plan(asked.plan)
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
    from ..trace.wording import number

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
                        number(found.p_value),
                        number(found.e_value),
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
