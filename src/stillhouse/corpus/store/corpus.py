"""A corpus on disk: exchanges in a directory, with one writer and any number of readers.

Readers stream and hold one batch of rows; a writer also holds the ids of all rows. See
:mod:`~stillhouse.corpus.store.layout` for the files. Rows stay in the order in which they were stored.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import pyarrow as pa

from stillhouse.corpus.schema import SCHEMA, Row, to_rows, to_table
from stillhouse.corpus.store.layout import (
    clear,
    incomplete_mark,
    journal_path,
    numbers,
    remove_leftovers,
    shard_path,
)
from stillhouse.corpus.store.shards import BATCH_ROWS, batched, open_shard, read_shard, write_shard
from stillhouse.corpus.store.writer import Writer
from stillhouse.errors import CorpusError
from stillhouse.files import storage_errors, take_lock
from stillhouse.journal import read_journal

SHARD_ROWS = 4096
"""Rows of a shard."""


class Corpus:
    """Exchanges in a directory.

    Args:
        directory: of the shards; created by the first write.
        schema: columns of a row.
        shard_rows: rows after which the journal becomes a shard.
    """

    def __init__(
        self, directory: str | Path, *, schema: pa.Schema = SCHEMA, shard_rows: int = SHARD_ROWS
    ) -> None:
        self.directory = Path(directory)
        self.schema = schema
        self.shard_rows = shard_rows
        self._writer: Writer | None = None
        self._ids: set[str] = set()

    # Reading

    def __len__(self) -> int:
        """The number of rows, from the shards' headers and the journal's lines."""
        count = 0
        for number in self._numbers():
            try:
                with open_shard(shard_path(self.directory, number), self.schema) as file:
                    count += file.metadata.num_rows
            except FileNotFoundError:
                count += sum(1 for _ in read_journal(journal_path(self.directory, number)))
        return count

    def rows(self, split: str | None = None, *, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """Streams the rows in the order in which they were stored, those of the journal last.

        Args:
            split: only rows of this split.
            columns: only these columns (`split` must be among them when ``split`` is given).

        Raises:
            CorpusError: a shard or the journal is damaged; the message names it.
        """
        names = list(columns or self.schema.names)
        for number in self._numbers():
            for row in self._read(number, names):
                if split is None or row["split"] == split:
                    yield row

    def ids(self) -> set[str]:
        """Ids of all rows."""
        return {row["id"] for row in self.rows(columns=["id"])}

    def shards(self) -> list[Path]:
        """The sealed shards, in order."""
        paths = (shard_path(self.directory, number) for number in self._numbers())
        return [path for path in paths if path.exists()]

    def _read(self, number: int, names: Sequence[str]) -> Iterator[Row]:
        try:
            yield from read_shard(shard_path(self.directory, number), self.schema, names)
        except FileNotFoundError:
            # No shard of this number yet, so its rows are in the journal.
            schema = pa.schema([self.schema.field(name) for name in names])
            for batch in batched(read_journal(journal_path(self.directory, number)), BATCH_ROWS):
                yield from to_rows(to_table(batch, schema))

    def _numbers(self) -> list[int]:
        try:
            incomplete = incomplete_mark(self.directory).exists()
            stored = numbers(self.directory)
        except PermissionError as error:
            raise CorpusError(f"no permission to read {self.directory}") from error
        except OSError as error:
            raise CorpusError(f"{self.directory} cannot be read: {error.strerror}") from error
        if incomplete:
            raise CorpusError(
                f"{self.directory} is only half written: the process that wrote it stopped",
                hint="Run the same command again; it rewrites the directory.",
            )
        return stored

    # Writing

    def lock(self) -> Writer:
        """Takes the writer's lock until :meth:`seal` or :meth:`close`; resumes a killed writer's journal.

        Raises:
            StorageError: another process is writing to this corpus, or the directory cannot be written.
        """
        if self._writer is None:
            self._numbers()
            self._writer = Writer(self.directory, self.schema, self.shard_rows)
            self._ids = self.ids()
        return self._writer

    def append(self, row: Row) -> None:
        """Stores a row durably before it returns; the first call takes the lock.

        Raises:
            StorageError: another process is writing to this corpus, the disk is full, or there is no
                permission; earlier rows are not lost.
        """
        writer = self.lock()
        assert row["id"] not in self._ids, f"row {row['id']} is in the corpus already"
        assert row.keys() <= set(self.schema.names), f"unknown columns in {sorted(row)}"
        try:
            writer.append(row)
        except BaseException:
            self.close()
            raise
        self._ids.add(row["id"])

    def seal(self) -> None:
        """Turns the journal into a shard and releases the lock; the next append takes it again.

        Raises:
            StorageError: the disk is full; the journal still holds every row.
        """
        if self._writer is None and len(self.shards()) == len(self._numbers()):
            return
        writer = self.lock()
        try:
            writer.seal()
        finally:
            self.close()

    def close(self) -> None:
        """Releases the lock and leaves the journal as it is."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def replace(self, rows: Iterable[Row]) -> int:
        """Replaces the corpus with ``rows``, written directly to shards; returns their number.

        Until it ends, readers get an error, so that nobody uses a half-written corpus.
        """
        lock = take_lock(self.directory)
        try:
            with storage_errors(self.directory):
                incomplete_mark(self.directory).touch()  # before anything is removed
                remove_leftovers(self.directory)
                clear(self.directory)
            count = 0
            for number, chunk in enumerate(_chunks(rows, self.shard_rows)):
                count += write_shard(shard_path(self.directory, number), chunk, self.schema)
            with storage_errors(self.directory):
                incomplete_mark(self.directory).unlink()
            return count
        finally:
            os.close(lock)

    def replace_shard(self, path: Path, rows: Iterable[Row]) -> None:
        """Replaces the rows of one sealed shard atomically; the lock must be held."""
        assert self._writer is not None, "replace_shard without the lock"
        write_shard(path, rows, self.schema)


def _chunks(rows: Iterable[Row], size: int) -> Iterator[Iterator[Row]]:
    """Lazy chunks of ``size`` rows; each must be exhausted before the next."""
    remaining = iter(rows)
    for first in remaining:
        yield chain([first], islice(remaining, size - 1))
