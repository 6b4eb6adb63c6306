"""What is made before a trace: resamples, a surrogate's figures, canaries, drawn versions, a signing key."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from stillhouse.cli.options import Output, OutputFlags
from stillhouse.console import console
from stillhouse.errors import UsageError

RESAMPLE_EXAMPLES = """\
Examples:
  still trace resample --teacher ours --log delivered.parquet --out r.parquet
  still trace resample --teacher ours --log log.parquet --draws 5 --seed 7
  still trace resample --teacher ours --log log.parquet --watermark mark.key"""
SURROGATE_EXAMPLES = """\
Examples:
  still trace surrogate --model ours-2 --log used.parquet --resamples r.parquet
  still trace surrogate --model m --log u.jsonl --resamples r.parquet --json"""
CANARIES_EXAMPLES = """\
Examples:
  still trace canaries --key canary.key --account acme --out canaries.jsonl
  still trace canaries --key k --account acme --account zeta --count 40"""
DRAW_EXAMPLES = """\
Examples:
  still trace draw versions.jsonl --key author.key
  still trace draw poems.jsonl --key author.key --out texts.jsonl --json"""
KEY_EXAMPLES = """\
Examples:
  still trace key signing.pem
  still trace key signing.pem --json"""


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
    from stillhouse.hashing import sha256_file
    from stillhouse.trace.delivered_log import read_log
    from stillhouse.trace.resample import LogMark, resample as draw
    from stillhouse.watermark import Mark, read_key

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
    score: Literal["loglik", "min_k", "reference", "teacher", "overlap"] = "loglik",
    reference: Annotated[str | None, Parameter(metavar="MODEL")] = None,
    teacher: Annotated[str | None, Parameter(metavar="MODEL")] = None,
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
    teacher
        The archived teacher, for the score `teacher`.
    hard
        The e-value that a log is to reach.
    seed
        Of the order in which outputs are asked.
    """
    from stillhouse.trace.delivered_log import read_log
    from stillhouse.trace.detectors.exchangeable.judge import POWER
    from stillhouse.trace.resample import read_resamples
    from stillhouse.trace.surrogate import SHARES, measure_surrogate
    from stillhouse.trace.suspects.open import open_suspect

    held, read = read_resamples(resamples), read_log(log)
    with ExitStack() as stack:
        opened, other, itself = (
            None if name is None else stack.enter_context(closing(open_suspect(name, seed=seed)))
            for name in (model, reference, teacher)
        )
        assert opened is not None
        found = measure_surrogate(opened, read, held, score=score, reference=other, teacher=itself, seed=seed)
    sizes = found.sizes(hard, POWER)
    facts = {"outputs": found.n, "auc": found.auc, "surrogate_auc": [found.low, found.high]}
    console.data(facts | {"sizes": {str(share): size for share, size in sizes.items()}})
    if console.json:
        return
    print(
        f"AUC {found.auc:.3f} [{found.low:.3f}, {found.high:.3f}], 95%, from {found.n:,} outputs with "
        f"{found.resamples_each:.3g} resamples each"
    )
    if not found.is_informative:
        print("The score does not tell them apart: it can bound nothing.")
        return
    rows = [[f"{share:.0%}", f"{sizes[share]:,}" if share in sizes else "no log"] for share in SHARES]
    console.table(f"log size for E ≥ {hard:,.0f} with {POWER:.0%} chance", ["share used", "outputs"], rows)
    print(f"For the plan: surrogate_auc: [{found.low:.3f}, {found.high:.3f}]")


def canaries(
    *,
    key: Annotated[Path, Parameter(metavar="KEYFILE")],
    account: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)],
    count: Annotated[int, Parameter(metavar="N")] = 20,
    decoys: Annotated[int, Parameter(metavar="N")] = 99,
    out: Annotated[Path, Parameter(metavar="FILE")] = Path("canaries.jsonl"),
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Make sentences to be slipped into an account's outputs, and their decoys.

    The sentences are printed, a line each; mix them into what the account is given.
    The file with the decoys stays secret; name it as `canaries` in the plan.

    Parameters
    ----------
    key
        A secret key (openssl rand -hex 32); the same key makes the same canaries.
    account
        Who gets them. Name accounts that get none as well: they are placebos.
    count
        Canaries of each account.
    decoys
        Of each canary: sentences of the same form that go nowhere.
    out
        The file with all of them.
    """
    if count < 1 or decoys < 1:
        raise UsageError("--count and --decoys must be at least 1")
    from stillhouse.hashing import sha256_file
    from stillhouse.trace.detectors.canaries import make_canaries, write_canaries
    from stillhouse.watermark import read_key

    secret = read_key(key)
    sets = [one for name in account for one in make_canaries(secret, name, count, decoys=decoys)]
    write_canaries(out, sets)
    digest = sha256_file(out)
    told = [{"account": one.account, "canary": one.canary} for one in sets]
    console.data({"file": str(out), "sha256": digest, "canaries": told})
    if not console.json:
        for one in sets:
            print(f"{one.account}: {one.canary}" if len(account) > 1 else one.canary)
    console.info(f"{out}: keep it secret; publish its SHA-256 first: {digest}")


def draw(
    versions: Annotated[Path, Parameter(metavar="FILE")],
    /,
    *,
    key: Annotated[Path, Parameter(metavar="KEYFILE")],
    out: Annotated[Path, Parameter(metavar="FILE")] = Path("texts.jsonl"),
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Choose by lot which version of each of your texts to publish.

    For an author who wants to be able to ask later whether a model was trained on
    them: `still trace --suspect MODEL --texts texts.jsonl`. Publish only the chosen
    versions and keep the others.

    Parameters
    ----------
    versions
        JSON lines with `id` and `versions`, rephrasings by one generator.
    key
        A secret key (openssl rand -hex 32) that decides.
    out
        Versions, choice and key: secret until a trace is published.
    """
    from stillhouse.hashing import sha256_file
    from stillhouse.trace.detectors.rephrasings import draw_versions, read_versions, write_versions
    from stillhouse.watermark import read_key

    drawn = draw_versions(read_versions(versions, chosen=False), read_key(key))
    write_versions(out, drawn)
    digest = sha256_file(out)
    chosen = {one.id: one.published for one in drawn}
    console.data({"file": str(out), "sha256": digest, "publish": chosen})
    if not console.json:
        for one in drawn:
            print(f"{one.id}: publish version {one.published + 1} of {len(one.versions)}")
    console.info(f"{out}: keep it secret; publish its SHA-256 before the texts: {digest}")


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
    from stillhouse.trace.bundle.signing import make_key

    public = make_key(file)
    console.data({"file": str(file), "public_key": public})
    if not console.json:
        print(public)
    console.hint("publish the public key; keep the file to yourself.")


SUBCOMMANDS = {
    "resample": (resample, RESAMPLE_EXAMPLES),
    "surrogate": (surrogate, SURROGATE_EXAMPLES),
    "canaries": (canaries, CANARIES_EXAMPLES),
    "draw": (draw, DRAW_EXAMPLES),
    "key": (key, KEY_EXAMPLES),
}
"""The verbs below `still trace` that come before it, with their examples."""
