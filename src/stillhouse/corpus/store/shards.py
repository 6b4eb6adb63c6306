"""Parquet shards: written atomically, read a batch at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.corpus.schema import MESSAGES, OLD_MESSAGES, Row, to_rows, to_table
from stillhouse.errors import CorpusError
from stillhouse.files import atomic_path

ROW_GROUP_ROWS = 512
BATCH_ROWS = 256
ADDED = ("tools",)
"""Columns that shards of older versions lack."""


def write_shard(
    path: Path, rows: Iterable[Row], schema: pa.Schema, *, group_rows: int = ROW_GROUP_ROWS
) -> int:
    """Writes ``rows`` to ``path`` atomically, zstd, a row group at a time; returns their number."""
    count = 0
    with (
        atomic_path(path) as temporary,
        open(temporary, "wb") as file,
        pq.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        for group in batched(rows, group_rows):
            writer.write_table(to_table(group, schema))
            count += len(group)
    return count


def read_shard(
    path: Path,
    schema: pa.Schema,
    columns: Sequence[str] | None = None,
    *,
    batch_rows: int = BATCH_ROWS,
) -> Iterator[Row]:
    """Streams the rows of a shard, decoding a batch at a time.

    Raises:
        CorpusError: the file is damaged or lacks a column; the message names it.
    """
    with open_shard(path, schema) as file, reading(path):
        names = list(columns or schema.names)
        stored = file.schema_arrow.names
        batches = file.iter_batches(batch_size=batch_rows, columns=[name for name in names if name in stored])
        absent = {name: None for name in names if name not in stored}
        for batch in batches:
            yield from ({**row, **absent} for row in to_rows(batch)) if absent else to_rows(batch)


@contextlib.contextmanager
def open_shard(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetFile]:
    """Opens a shard and checks that it has every column of ``schema`` with its type."""
    with reading(path), pq.ParquetFile(path, pre_buffer=False) as file:
        actual = file.schema_arrow
        for field in schema:
            index = actual.get_field_index(field.name)
            if index < 0 and field.name in ADDED:
                continue
            if index < 0:
                raise CorpusError(f"{path} is not a shard of this corpus: it has no column {field.name!r}")
            if actual.field(index).type not in _readable_types(field):
                raise CorpusError(
                    f"{path}: column {field.name!r} holds {actual.field(index).type}, not {field.type}"
                )
        yield file


def _readable_types(field: pa.Field) -> tuple[pa.DataType, ...]:
    """The column's type, and that of older versions."""
    return (field.type, OLD_MESSAGES) if field.type == MESSAGES else (field.type,)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Converts errors while reading parquet into errors that name the file."""
    try:
        yield
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise CorpusError(f"no permission to read {path}") from error
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(
            f"{path} is not readable as parquet: {str(error).splitlines()[0]}",
            hint="Restore the file from a copy, or remove it; its answers are then collected again.",
        ) from error


def batched(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Lists of ``size`` rows; the last one may be shorter."""
    group: list[Row] = []
    for row in rows:
        group.append(row)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
