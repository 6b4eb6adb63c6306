"""Where the parts of a corpus lie in its directory, and who may write there.

    shard-000000.parquet    sealed rows
    shard-000001.parquet
    journal-000002.jsonl    rows of the shard to come, a line each
    .lock                   held (flock) while somebody writes
    .incomplete             there while the whole corpus is written anew

A journal becomes the shard of its own number: the shard is written atomically, then
the journal is removed. Where both exist, the process died between the two, and the
shard counts; so no moment of death loses or doubles a row.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ..errors import CorpusError
from ..files import storage_errors


def shard_path(directory: Path, number: int) -> Path:
    """The shard of that number."""
    return directory / f"shard-{number:06d}.parquet"


def journal_path(directory: Path, number: int) -> Path:
    """The journal that becomes the shard of that number."""
    return directory / f"journal-{number:06d}.jsonl"


def incomplete_mark(directory: Path) -> Path:
    """The file that says: what is here is not yet the whole."""
    return directory / ".incomplete"


def numbers(directory: Path) -> list[int]:
    """The numbers of all shards and journals, in order."""
    paths = [*directory.glob("shard-*.parquet"), *directory.glob("journal-*.jsonl")]
    return sorted({int(path.stem.rpartition("-")[2]) for path in paths})


def take_lock(directory: Path) -> int:
    """Makes the directory and locks it for one writer; closing the returned descriptor unlocks it.

    The system unlocks it too when the process dies.

    Raises:
        CorpusError: another process (or another Corpus in this one) is writing.
        StorageError: the directory cannot be made or written.
    """
    with storage_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise CorpusError(
            f"another process is writing to {directory}",
            hint="Wait until it ends, or give this run a directory of its own.",
        ) from error
    return lock


def clear(directory: Path) -> None:
    """Removes all shards and journals; for the writer only."""
    for number in numbers(directory):
        shard_path(directory, number).unlink(missing_ok=True)
        journal_path(directory, number).unlink(missing_ok=True)


def remove_leftovers(directory: Path) -> None:
    """Removes what a killed writer left: half-written files, and journals that had become shards."""
    for path in directory.glob(".shard-*.tmp"):
        path.unlink()
    for number in numbers(directory):
        if shard_path(directory, number).exists():
            journal_path(directory, number).unlink(missing_ok=True)
