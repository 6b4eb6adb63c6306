"""Reads files of prompts as records (dicts), each with its location (``file:line``).

What the columns mean is up to :mod:`~stillhouse.corpus.prompts.columns`.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stillhouse.errors import CorpusError

Record = tuple[str, dict[str, Any]]
"""Location and columns."""


def read_records(path: Path) -> Iterator[Record]:
    """Streams the records of a file by its suffix (.json is read whole).

    Raises:
        CorpusError: missing, unreadable, of an unknown kind, or malformed.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise CorpusError(
            f"{path}: prompts are read from {', '.join(sorted(_READERS))} files, not from {path.suffix!r}"
        )
    if "\0" in str(path):
        raise CorpusError(f"{str(path)!r} is not a file name")
    with _file_errors(path):
        yield from reader(path)


def _jsonl(path: Path) -> Iterator[Record]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{path}:{number}"
                yield where, _object(_parse(line.strip(), where), where)


def _json(path: Path) -> Iterator[Record]:
    text = path.read_text("utf-8-sig")
    if not text.strip():
        return
    hint = "A file with one record a line must have a name that ends in .jsonl."
    try:
        value = _parse(text, str(path))
    except CorpusError as error:
        raise CorpusError(str(error), hint=hint) from error
    if not isinstance(value, list):
        raise CorpusError(f"{path}: expected a list of records, found {_kind(value)}", hint=hint)
    for number, record in enumerate(value, 1):
        where = f"{path}: record {number}"
        yield where, _object(record, where)


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from stillhouse.corpus.store.shards import BATCH_ROWS, reading

    number = 0
    with reading(path), pq.ParquetFile(path, pre_buffer=False) as file:
        # Times and dates are never tags, and Python cannot represent all of them.
        kept = [i for i, field in enumerate(file.schema_arrow) if not pa.types.is_temporal(field.type)]
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            for record in batch.select(kept).to_pylist():
                number += 1
                yield f"{path}: row {number}", record


def _csv(path: Path) -> Iterator[Record]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for record in reader:
                where = f"{path}:{reader.line_num}"
                if None in record or None in record.values():
                    raise CorpusError(
                        f"{where}: expected {len(reader.fieldnames or ())} fields as in the header"
                    )
                yield where, dict(record)
        except csv.Error as error:
            raise CorpusError(
                f"{path}:{reader.reader.line_num}: {error}",
                hint="Use .jsonl or .parquet for texts of this length, or with quotation marks.",
            ) from error


def _txt(path: Path) -> Iterator[Record]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", {"prompt": line.strip()}


_READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
    ".txt": _txt,
}


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        location = where if error.lineno == 1 else f"{where}:{error.lineno}"
        snippet = " ".join(error.doc[error.pos : error.pos + 30].split()) or "the end"
        raise CorpusError(
            f"{location}: not JSON: {error.msg} at column {error.colno}, found {snippet!r}"
        ) from error
    except (ValueError, RecursionError) as error:  # thousands of digits or of nested lists
        raise CorpusError(f"{where}: not readable as JSON: {error}") from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CorpusError(f"{where}: expected an object with named columns, found {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


@contextlib.contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise CorpusError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise CorpusError(f"{path} is a directory, not a file of prompts") from error
    except PermissionError as error:
        raise CorpusError(f"no permission to read {path}") from error
    except OSError as error:  # e.g. a name that is too long
        raise CorpusError(f"{str(path)[:200]} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
