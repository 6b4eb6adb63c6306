"""Commitments: hashes of everything that could be tuned to the answers, written before the first query.

`still trace commit` writes ``commitments.json`` into the bundle; a trace without one writes it before its
first query. Secrets (a watermark's key, the canaries) are committed as the SHA-256 of a random salt and the
file; the salts stay in ``salts.json``, readable by the owner only, until the finished bundle opens them.

The time in ``commitments.json`` is that of this machine's clock. To prove it to others, publish the file's
hash where a third party records the date.
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
    """The current time, ISO 8601, UTC, to the microsecond."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def make_commitments(plan: TracePlan, salts: Mapping[str, str]) -> Commitments:
    """The commitments of a resolved plan, as of now.

    Args:
        salts: hexadecimal, by the secret's name; see :func:`secret_files`.

    Raises:
        StillhouseError: a model, log or secret that the plan names does not exist.
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
    """Writes ``commitments.json``, and ``salts.json`` if there are secrets; checks existing ones.

    Raises:
        IntegrityError: the directory holds commitments to something else; lists the differences.
    """
    path = directory / COMMITMENTS
    salts = read_salts(directory)
    if path.exists():
        made = read_commitments(path)
        if differences := differing(made, make_commitments(plan, salts)):
            raise IntegrityError(
                f"{path} was made for something else:\n" + "\n".join(f"  {d}" for d in differences),
                hint="Name another directory with --out; commitments are never overwritten.",
            )
        return made
    salts = {name: secrets.token_hex(16) for name in secret_files(plan)}
    made = make_commitments(plan, salts)
    if salts:
        write_secret(directory / SALTS, json.dumps(salts, indent=2) + "\n")
    atomic_write(directory / "plan.yaml", dump_plan(plan))
    atomic_write(path, json.dumps(made.model_dump(), indent=2, ensure_ascii=False) + "\n")
    return made


def read_commitments(path: Path) -> Commitments:
    """Reads the commitments in a file.

    Raises:
        IntegrityError: the file does not exist or does not hold commitments.
    """
    try:
        return Commitments.model_validate_json(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(map(str, first["loc"]))
        raise IntegrityError(f"{path} does not hold commitments: {location}: {first['msg']}") from error


def read_salts(directory: Path) -> dict[str, str]:
    """The salts of a bundle's secrets; empty without secrets."""
    path = directory / SALTS
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def differing(committed: Commitments, current: Commitments) -> list[str]:
    """The differences between two commitments, one line each; the time is ignored."""
    lines = []
    for name in ("plan", "version", "code"):
        if getattr(committed, name) != getattr(current, name):
            lines.append(f"the {name} is not the one that was committed")
    for name in ("models", "logs", "resamples", "secrets"):
        before, after = getattr(committed, name), getattr(current, name)
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key):
                lines.append(f"{name}: {key} is not the one that was committed")
    return lines


def secret_files(plan: TracePlan) -> dict[str, str]:
    """The files of the plan that stay secret until the trace is finished, by the name of their commitment."""
    return {
        f"{teacher.name}.{kind}": path
        for teacher in plan.teachers
        for kind in ("watermark_key", "canaries")
        if (path := getattr(teacher, kind))
    }


def salted_hash(salt: str, data: bytes) -> str:
    """SHA-256 of a salt (hexadecimal) followed by a file."""
    return sha256_bytes(bytes.fromhex(salt) + data)


def code_hash() -> str:
    """SHA-256 over the names and contents of the package's own files, without the recipes in a wheel."""
    package = Path(__file__).parents[2]
    files = sorted(
        path
        for path in package.rglob("*")
        if path.is_file()
        and path.suffix in (".py", ".j2", ".css", ".yaml")
        and not path.is_relative_to(package / "recipes")
    )
    return sha256_json([[path.relative_to(package).as_posix(), sha256_file(path)] for path in files])


def log_hash(log: str) -> str:
    """The hash of a log, as in :attr:`.delivered_log.Log.hash`."""
    digests = [sha256_file(file) for file in log_files(Path(log))]
    return digests[0] if len(digests) == 1 else sha256_json(digests)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}, which the plan names: {error.strerror}") from error
