"""The files of a corpus in its directory.

    shard-000000.parquet    sealed rows
    shard-000001.parquet
    journal-000002.jsonl    rows of the next shard, one line each
    .lock                   held (flock) by a writer
    .incomplete             exists while the whole corpus is rewritten

A journal becomes the shard of the same number: the shard is written atomically, then the journal is removed.
If both exist, the process died in between, and the shard counts. So a crash at any moment neither loses nor
doubles a row.
"""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"shard-(\d{6,})\.parquet|journal-(\d{6,})\.jsonl")


def shard_path(directory: Path, number: int) -> Path:
    """The path of shard ``number``."""
    return directory / f"shard-{number:06d}.parquet"


def journal_path(directory: Path, number: int) -> Path:
    """The path of the journal that becomes shard ``number``."""
    return directory / f"journal-{number:06d}.jsonl"


def incomplete_mark(directory: Path) -> Path:
    """The file that marks a corpus whose rewriting has not ended."""
    return directory / ".incomplete"


def numbers(directory: Path) -> list[int]:
    """The numbers of all shards and journals, ascending."""
    names = (_NAME.fullmatch(path.name) for path in directory.iterdir()) if directory.is_dir() else ()
    return sorted({int(name[1] or name[2]) for name in names if name})


def clear(directory: Path) -> None:
    """Removes all shards and journals; only for the writer."""
    for number in numbers(directory):
        shard_path(directory, number).unlink(missing_ok=True)
        journal_path(directory, number).unlink(missing_ok=True)


def remove_leftovers(directory: Path) -> None:
    """Removes what a killed writer left: half-written files, and journals that had already become shards."""
    for path in directory.glob(".shard-*.tmp"):
        path.unlink()
    for number in numbers(directory):
        if shard_path(directory, number).exists():
            journal_path(directory, number).unlink(missing_ok=True)
