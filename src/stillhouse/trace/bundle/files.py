"""The evidence bundle on disk: where its files are, and how they are written and read.

```
evidence/
  plan.yaml          resolved
  commitments.json   hashes of plan, code, models, logs and secrets, before the first query
  salts.json         opens the commitments to secrets, which are then in opened/
  resamples/         TEACHER.parquet
  transcripts/       TEACHER/TEST.parquet: raw queries and answers
  evidence.json      findings, verdicts, and the hash of every other file (:mod:`.schema`)
  signature.json     Ed25519, over the bytes of evidence.json
  report.html
```
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from stillhouse.errors import IntegrityError
from stillhouse.files import LOCK, atomic_path, atomic_write, write_json
from stillhouse.hashing import sha256_file
from stillhouse.trace.bundle.schema import Evidence, evidence_text
from stillhouse.trace.bundle.signing import public_hex, require_signature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PLAN, EVIDENCE, SIGNATURE, REPORT = "plan.yaml", "evidence.json", "signature.json", "report.html"
TRANSCRIPTS, RESAMPLES, OPENED = "transcripts", "resamples", "opened"
STARTED, FINISHED = b"started", b"finished"
"""Keys of a transcript's metadata: times, ISO 8601, UTC."""


def transcript_path(teacher: str, test: str) -> str:
    """The path of a transcript, relative to the bundle."""
    return f"{TRANSCRIPTS}/{teacher}/{test}.parquet"


def write_transcript(path: Path, table: pa.Table, started: str, finished: str) -> None:
    """Writes a transcript atomically, with the times of its first and last query."""
    metadata = (table.schema.metadata or {}) | {STARTED: started.encode(), FINISHED: finished.encode()}
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary)


def read_transcript(path: Path) -> pa.Table:
    """Reads a transcript.

    Raises:
        IntegrityError: the file does not exist or is not parquet.
    """
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise IntegrityError(f"{path} cannot be read: {error}"[:300]) from error


def started(transcript: pa.Table) -> str | None:
    """The time of its first query."""
    time = (transcript.schema.metadata or {}).get(STARTED)
    return None if time is None else time.decode()


def recorded_files(directory: Path) -> list[str]:
    """Every file whose hash is in the evidence, relative, with `/`; files that no stage wrote count too."""
    excluded = {EVIDENCE, SIGNATURE, LOCK}
    paths = (path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    return sorted(path for path in paths if path not in excluded)


def hash_files(directory: Path) -> dict[str, str]:
    """The hashes of :func:`recorded_files`."""
    return {path: sha256_file(directory / path) for path in recorded_files(directory)}


def write_evidence(directory: Path, evidence: Evidence, key: Ed25519PrivateKey | None) -> Evidence:
    """Writes ``evidence.json`` with the hashes of all other files, and signs it if there is a key."""
    signed_by = None if key is None else public_hex(key)
    evidence = evidence.model_copy(update={"files": hash_files(directory), "signed_by": signed_by})
    data = evidence_text(evidence).encode("utf-8")
    (directory / SIGNATURE).unlink(missing_ok=True)  # a crash must not leave older evidence's signature
    atomic_write(directory / EVIDENCE, data)
    if key is not None:
        signature = {
            "schema_version": 1,
            "algorithm": "Ed25519",
            "file": EVIDENCE,
            "public_key": signed_by,
            "signature": key.sign(data).hex(),
        }
        write_json(directory / SIGNATURE, signature)
    return evidence


def read_evidence(directory: Path) -> Evidence:
    """Reads ``evidence.json``.

    Raises:
        IntegrityError: the file does not exist, has another schema, or is not in the canonical form.
    """
    path = directory / EVIDENCE
    try:
        text = path.read_text("utf-8")
        evidence = Evidence.model_validate_json(text)
    except FileNotFoundError as error:
        raise IntegrityError(
            f"{directory} holds no {EVIDENCE}", hint="Name the directory that `still trace --out` wrote."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        location = ".".join(map(str, first["loc"])) or "the file"
        raise IntegrityError(f"{path} is not evidence of version 1: {location}: {first['msg']}") from error
    if text != evidence_text(evidence):
        raise IntegrityError(
            f"{path} was changed after it was written: spaces, order or duplicate keys differ"
        )
    return evidence


def signature_difference(directory: Path, evidence: Evidence, expected: str | None = None) -> str | None:
    """What is wrong with the signature, or None; evidence that names no key needs no signature.

    Args:
        expected: the public key, hexadecimal, of the required signer.
    """
    path = directory / SIGNATURE
    if expected is not None and evidence.signed_by != expected.lower():
        if evidence.signed_by is None:
            return f"the evidence is not signed; the required signer is {expected}"
        return f"the evidence is signed by {evidence.signed_by}, not by {expected}"
    if evidence.signed_by is None:
        return f"{SIGNATURE} exists, but the evidence names no signer" if path.exists() else None
    try:
        record = json.loads(path.read_text("utf-8"))
        if record["public_key"] != evidence.signed_by or set(record) != set(_SIGNATURE_KEYS):
            return f"{SIGNATURE} does not belong to the key that the evidence names"
        if [record[key] for key in ("schema_version", "algorithm", "file")] != [1, "Ed25519", EVIDENCE]:
            return f"{SIGNATURE} has an unsupported version or algorithm"
        require_signature(record["public_key"], record["signature"], (directory / EVIDENCE).read_bytes())
    except FileNotFoundError:
        return f"{SIGNATURE} is missing, but the evidence says that it is signed"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{SIGNATURE}, which signs {EVIDENCE}: {error}"
    return None


_SIGNATURE_KEYS = ("schema_version", "algorithm", "file", "public_key", "signature")
