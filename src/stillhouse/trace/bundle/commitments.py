"""Commitments: hashes of everything that could be tuned to the answer, written before the first query.

`still trace commit` writes ``commitments.json`` into the bundle; a trace that finds none writes its own
before it asks. Secrets (a watermark's key, the canaries) are committed as the SHA-256 of a random salt and
the file; the salts stay in ``salts.json``, readable by the owner only, until the finished bundle opens them.

The time in it is that of this machine's clock. What proves it to others is the hash of ``commitments.json``,
published where somebody else keeps the date.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from stillhouse import __version__
from stillhouse.errors import IntegrityError, StorageError
from stillhouse.files import atomic_write, write_secret
from stillhouse.hashing import sha256_bytes, sha256_file, sha256_json, sha256_text
from stillhouse.models import fingerprint_of
from stillhouse.trace.bundle.schema import Commitments
from stillhouse.trace.delivered_log import log_files
from stillhouse.trace.plan import TracePlan, dump_plan

COMMITMENTS, SALTS = "commitments.json", "salts.json"


def now() -> str:
    """The time, ISO 8601, UTC, to the microsecond."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def make_commitments(plan: TracePlan, salts: Mapping[str, str]) -> Commitments:
    """The commitments of a resolved plan, as of now.

    Args:
        salts: by secret's name, hexadecimal; see :func:`secret_files`.

    Raises:
        StillhouseError: a model, a log or a secret that the plan names is not there.
    """
    references = [plan.suspect, *(t.model for t in plan.teachers), *plan.references]
    return Commitments(
        created=now(),
        plan=sha256_text(dump_plan(plan)),
        code=code_hash(),
        version=__version__,
        models={reference: fingerprint_of(reference) for reference in references if reference},
        logs={t.name: log_hash(t.log) for t in plan.teachers},
        resamples={t.name: sha256_bytes(_read(t.resamples)) for t in plan.teachers if t.resamples},
        secrets={name: salted_hash(salts[name], _read(path)) for name, path in secret_files(plan).items()},
    )


def commit(plan: TracePlan, directory: Path) -> Commitments:
    """Writes ``commitments.json``, and ``salts.json`` where there are secrets; those that exist stay.

    Raises:
        IntegrityError: the directory holds commitments to something else; says to what.
    """
    known = directory / COMMITMENTS
    salts = read_salts(directory)
    if known.exists():
        made = read_commitments(known)
        if differences := differing(made, make_commitments(plan, salts)):
            raise IntegrityError(
                f"{known} was made for something else:\n" + "\n".join(f"  {d}" for d in differences),
                hint="Name another directory with --out; commitments are never overwritten.",
            )
        return made
    salts = {name: secrets.token_hex(16) for name in secret_files(plan)}
    made = make_commitments(plan, salts)
    if salts:
        write_secret(directory / SALTS, json.dumps(salts, indent=2) + "\n")
    atomic_write(directory / "plan.yaml", dump_plan(plan))
    atomic_write(known, json.dumps(made.model_dump(), indent=2, ensure_ascii=False) + "\n")
    return made


def read_commitments(path: Path) -> Commitments:
    """The commitments in a file.

    Raises:
        IntegrityError: it is not there, or no commitments.
    """
    try:
        return Commitments.model_validate_json(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise IntegrityError(f"{path} does not hold commitments: {place}: {first['msg']}") from error


def read_salts(directory: Path) -> dict[str, str]:
    """The salts that were drawn for a bundle; empty where there are no secrets."""
    path = directory / SALTS
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def differing(committed: Commitments, found: Commitments) -> list[str]:
    """What differs between two commitments, one line each; the time does not count."""
    lines = []
    for name in ("plan", "version", "code"):
        if getattr(committed, name) != getattr(found, name):
            lines.append(f"the {name} is not the one that was committed")
    for name in ("models", "logs", "resamples", "secrets"):
        before, after = getattr(committed, name), getattr(found, name)
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key):
                lines.append(f"{name}: {key} is not the one that was committed")
    return lines


def secret_files(plan: TracePlan) -> dict[str, str]:
    """The files of the plan that stay secret until the end, by the name of their commitment."""
    return {
        f"{teacher.name}.{kind}": path
        for teacher in plan.teachers
        for kind in ("watermark_key", "canaries")
        if (path := getattr(teacher, kind))
    }


def salted_hash(salt: str, data: bytes) -> str:
    """SHA-256 of a salt (hexadecimal) and a file."""
    return sha256_bytes(bytes.fromhex(salt) + data)


def code_hash() -> str:
    """SHA-256 over the names and contents of the package's own files."""
    package = Path(__file__).parents[2]
    files = sorted(
        path
        for path in package.rglob("*")
        if path.is_file() and path.suffix in (".py", ".j2", ".css", ".yaml")
    )
    return sha256_json([[path.relative_to(package).as_posix(), sha256_file(path)] for path in files])


def log_hash(log: str) -> str:
    """The hash that :func:`.log.read_log` gives a log."""
    digests = [sha256_file(file) for file in log_files(Path(log))]
    return digests[0] if len(digests) == 1 else sha256_json(digests)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}, which the plan names: {error.strerror}") from error
