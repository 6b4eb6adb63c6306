"""Commands that prepare a trace: resamples, a surrogate's power, canaries, drawn versions, a signing key."""

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
HARD = 1000
"""The e-value of hard evidence in a default plan."""
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

    A trace compares delivered outputs with them. Keep them secret.

    Parameters
    ----------
    teacher
        The archived model that wrote the log.
    log
        The outputs that it delivered.
    draws
        Number of fresh outputs for each delivered one.
    seed
        Seed of the sampling.
    watermark
        Key to watermark the outputs with, as `still serve --watermark` does; for a
        log that carries this watermark.
    watermark_by_account
        Treat the key as a master key and derive a key for each account of the log.
    allow_other_teacher
        Continue although the log names another version of the teacher; the report
        says so.
    out
        The file to write; an interrupted run resumes.
    """
    if draws < 1:
        raise UsageError("--draws must be at least 1")
    if watermark_by_account and watermark is None:
        raise UsageError("--watermark-by-account needs the master key", hint="Give it with --watermark.")
    from stillhouse.hashing import sha256_file
    from stillhouse.trace import read_log
    from stillhouse.trace.resample import LogMark, resample as draw_resamples
    from stillhouse.watermark import Mark, read_key

    delivered = read_log(log)
    mark = LogMark(Mark(read_key(watermark)), watermark_by_account) if watermark else None
    drawn = draw_resamples(
        teacher, delivered, draws, seed, out, mark=mark, allow_other_teacher=allow_other_teacher
    )
    count = sum(map(len, drawn.texts.values()))
    digest = sha256_file(out)
    summary = {"file": str(out), "sha256": digest, "outputs": len(delivered.rows), "resamples": count}
    console.data(summary | {"failed": drawn.failed, "left_out": delivered.left_out})
    for reason, number in delivered.left_out.items():
        console.info(f"left out: {number:,} {reason}")
    console.text(f"{out}: {count:,} resamples of {len(delivered.rows):,} outputs, SHA-256 {digest}")


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
    """Measure the power of the exchangeable test on a model of your own.

    First train a small model on some of the teacher's outputs. This reports how often
    it ranks an output above a resample, and how large a log must be to show its use.

    Parameters
    ----------
    model
        The surrogate: a model trained on the outputs in --log.
    log
        The outputs that it was trained on, and no others.
    resamples
        Their resamples, made by `still trace resample`.
    score
        Score that ranks outputs among resamples, as in the plan.
    reference
        An unrelated model, for the score `reference`.
    teacher
        The archived teacher, for the score `teacher`.
    hard
        The e-value that a log must reach.
    seed
        Seed of the order of the outputs.
    """
    from stillhouse.trace import open_suspect, read_log, read_resamples
    from stillhouse.trace.detectors.exchangeable.judge import POWER
    from stillhouse.trace.surrogate import SHARES, measure_surrogate

    drawn, outputs = read_resamples(resamples), read_log(log)
    with ExitStack() as stack:
        surrogate_model, reference_model, teacher_model = (
            None if name is None else stack.enter_context(closing(open_suspect(name, seed=seed)))
            for name in (model, reference, teacher)
        )
        assert surrogate_model is not None
        result = measure_surrogate(
            surrogate_model,
            outputs,
            drawn,
            score=score,
            reference=reference_model,
            teacher=teacher_model,
            seed=seed,
        )
    sizes = result.sizes(hard, POWER)
    summary = {"outputs": result.n, "auc": result.auc, "surrogate_auc": [result.low, result.high]}
    console.data(summary | {"sizes": {str(share): size for share, size in sizes.items()}})
    if console.json:
        return
    console.text(
        f"AUC {result.auc:.3f} [{result.low:.3f}, {result.high:.3f}], 95%, from {result.n:,} outputs with "
        f"{result.resamples_each:.3g} resamples each"
    )
    if not result.is_informative:
        console.text("The score does not separate used outputs from resamples, so it gives no bound.")
        return
    rows = [[f"{share:.0%}", f"{sizes[share]:,}" if share in sizes else "no log"] for share in SHARES]
    console.table(f"log size for E ≥ {hard:,.0f} with {POWER:.0%} chance", ["share used", "outputs"], rows)
    console.text(f"For the plan: surrogate_auc: [{result.low:.3f}, {result.high:.3f}]")


def canaries(
    *,
    key: Annotated[Path, Parameter(metavar="KEYFILE")],
    account: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)],
    count: Annotated[int, Parameter(metavar="N")] = 20,
    decoys: Annotated[int, Parameter(metavar="N")] = 99,
    out: Annotated[Path, Parameter(metavar="FILE")] = Path("canaries.jsonl"),
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Make canaries for an account's outputs, with decoys.

    Prints the canaries, one sentence per line; insert them into the account's outputs.
    Keep the file with the decoys secret, and name it as `canaries` in the plan.

    Parameters
    ----------
    key
        Secret key (openssl rand -hex 32); the same key makes the same canaries.
    account
        Account that receives them; repeat it for more. Accounts that receive none
        are placebos: name them too.
    count
        Number of canaries for each account.
    decoys
        Number of decoys for each canary: sentences of the same form, never delivered.
    out
        The file to write: canaries and decoys.
    """
    if count < 1 or decoys < 1:
        raise UsageError("--count and --decoys must be at least 1")
    from stillhouse.hashing import sha256_file
    from stillhouse.trace import make_canaries, write_canaries
    from stillhouse.watermark import read_key

    secret = read_key(key)
    sets = [
        canary_set for name in account for canary_set in make_canaries(secret, name, count, decoys=decoys)
    ]
    write_canaries(out, sets)
    digest = sha256_file(out)
    public = [{"account": canary_set.account, "canary": canary_set.canary} for canary_set in sets]
    console.data({"file": str(out), "sha256": digest, "canaries": public})
    if not console.json:
        for canary_set in sets:
            prefix = f"{canary_set.account}: " if len(account) > 1 else ""
            print(f"{prefix}{canary_set.canary}")
    console.info(f"{out}: keep it secret; publish its SHA-256 first: {digest}")


def draw(
    versions: Annotated[Path, Parameter(metavar="FILE")],
    /,
    *,
    key: Annotated[Path, Parameter(metavar="KEYFILE")],
    out: Annotated[Path, Parameter(metavar="FILE")] = Path("texts.jsonl"),
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Draw the version of each of your texts to publish.

    For authors who may later test whether a model was trained on their texts:
    `still trace --suspect MODEL --texts texts.jsonl`. Publish only the drawn versions
    and keep the others.

    Parameters
    ----------
    versions
        JSON lines with `id` and `versions`: rephrasings by one generator.
    key
        Secret key (openssl rand -hex 32) that determines the draw.
    out
        The file to write: versions, choices and key. Keep it secret until a trace is
        published.
    """
    from stillhouse.hashing import sha256_file
    from stillhouse.pages.numbers import format_scientific
    from stillhouse.trace import draw_versions, read_versions, write_versions
    from stillhouse.trace.detectors.rephrasings import largest_e_value
    from stillhouse.watermark import read_key

    texts = draw_versions(read_versions(versions, chosen=False), read_key(key))
    write_versions(out, texts)
    digest = sha256_file(out)
    published = {text.id: text.published for text in texts}
    if (largest := largest_e_value(texts)) < HARD:
        console.warn(
            f"even a model that read every text gives E ≤ {format_scientific(largest)}, and hard evidence "
            f"needs {HARD:,}: add texts or versions before you publish"
        )
    console.data({"file": str(out), "sha256": digest, "publish": published})
    for text in texts:
        console.text(f"{text.id}: publish version {text.published + 1} of {len(text.versions)}")
    console.info(f"{out}: keep it secret; publish its SHA-256 before the texts: {digest}")


def key(
    file: Annotated[Path, Parameter(metavar="FILE")],
    /,
    *,
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Make a private key for signing evidence; print its public key.

    Parameters
    ----------
    file
        The file to write, readable by you only.
    """
    from stillhouse.trace.bundle.signing import make_key

    public = make_key(file)
    console.data({"file": str(file), "public_key": public})
    if not console.json:
        print(public)
    console.hint("publish the public key and keep the file secret.")


SUBCOMMANDS = {
    "resample": (resample, RESAMPLE_EXAMPLES),
    "surrogate": (surrogate, SURROGATE_EXAMPLES),
    "canaries": (canaries, CANARIES_EXAMPLES),
    "draw": (draw, DRAW_EXAMPLES),
    "key": (key, KEY_EXAMPLES),
}
"""Commands below `still trace` that prepare one, with their examples."""
