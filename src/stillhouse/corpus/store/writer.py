"""The writer of a corpus: rows go to the journal, full journals become shards."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa

from stillhouse.corpus.schema import Row
from stillhouse.corpus.store.layout import journal_path, numbers, remove_leftovers, shard_path
from stillhouse.corpus.store.shards import write_shard
from stillhouse.files import storage_errors, take_lock
from stillhouse.journal import Journal, read_journal


class Writer:
    """Holds the lock and the open journal; resumes where a killed writer stopped."""

    def __init__(self, directory: Path, schema: pa.Schema, shard_rows: int) -> None:
        self.directory, self.schema, self.shard_rows = directory, schema, shard_rows
        self._lock = take_lock(directory)
        self._journal: Journal | None = None
        try:
            with storage_errors(directory):
                remove_leftovers(directory)
            self._number = self._next_number()
            self._start_journal()
        except BaseException:
            self.close()
            raise

    def append(self, row: Row) -> None:
        """Stores a row; a full journal becomes a shard."""
        assert self._journal is not None
        self._journal.append(row)
        self._journal_rows += 1
        if self._journal_rows >= self.shard_rows:
            self.roll()

    def roll(self) -> None:
        """Turns the journal into a shard and starts the next one."""
        self.seal()
        self._start_journal()

    def seal(self) -> None:
        """Turns the journal into a shard; if that fails, the journal keeps every row."""
        self._close_journal()
        path = journal_path(self.directory, self._number)
        if self._journal_rows:
            write_shard(shard_path(self.directory, self._number), read_journal(path), self.schema)
            self._number += 1
        # Only now: after a crash in between both files exist, and readers use the shard.
        with storage_errors(path):
            path.unlink()

    def close(self) -> None:
        """Releases the lock; the journal stays as it is."""
        self._close_journal()
        os.close(self._lock)

    def _next_number(self) -> int:
        """The number of the unfinished journal, or one more than the last shard's."""
        stored = numbers(self.directory)
        if not stored:
            return 0
        return stored[-1] + shard_path(self.directory, stored[-1]).exists()

    def _start_journal(self) -> None:
        path = journal_path(self.directory, self._number)
        self._journal = Journal(path)
        self._journal_rows = sum(1 for _ in read_journal(path))

    def _close_journal(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None
