"""Reads files of prompts as records (dicts), each with its location (``file:line``).

Files may be compressed (.gz, .bz2, .xz, .zst). Text is UTF-8, or UTF-16 with a byte-order mark. A record
that cannot be read comes as the error in its place, so that one bad line does not hide the others. What the
columns mean is up to :mod:`~stillhouse.corpus.prompts.columns`.
"""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from stillhouse.errors import CorpusError

Record = tuple[str, dict[str, Any] | CorpusError]
"""Location, and the columns or what is wrong with them."""
_TWICE = "\ufdd0"
"""Key that marks an object with two values for one key: a noncharacter, which is never text."""
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")


def file_format(path: Path) -> str | None:
    """The suffix in :data:`FORMATS` of a file, that of a compressed file included; None for any other."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
        return suffixes[-1] if suffixes and suffixes[-1] in _TEXT_READERS else None
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


def read_records(path: Path) -> Iterator[Record]:
    """Streams the records of a file by its suffix (.json is read whole).

    Raises:
        CorpusError: missing, unreadable, of an unknown kind, or malformed as a whole.
    """
    kind = file_format(path)
    if kind is None:
        raise CorpusError(
            f"{path}: prompts are read from {', '.join(FORMATS)} files, "
            f"not from {''.join(path.suffixes[-2:])!r}",
            hint=f"Text files may be compressed ({', '.join(COMPRESSIONS)}); a directory, or a pattern such "
            "as data/*.jsonl, names several files.",
        )
    with _file_errors(path):
        if kind in _TEXT_READERS:
            with _open_text(path) as file:
                yield from _TEXT_READERS[kind](path, file)
        else:
            yield from _ARROW_READERS[kind](path)


@contextlib.contextmanager
def _open_text(path: Path) -> Iterator[IO[str]]:
    """Opens a text file, decompressed; newlines are left as they are."""
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(_open_bytes(path))
        buffered = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(cast(Any, raw))
        head = buffered.peek(2)[:2]
        encoding = "utf-16" if head in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        yield stack.enter_context(io.TextIOWrapper(buffered, encoding=encoding, newline=""))


def _open_bytes(path: Path) -> Any:
    match path.suffix.lower():
        case ".gz":
            return gzip.open(path)
        case ".bz2":
            return bz2.open(path)
        case ".xz":
            return lzma.open(path)
        case ".zst":
            return _Zstandard(path)
    return open(path, "rb")


class _Zstandard(io.RawIOBase):
    """A .zst file, decompressed by pyarrow (Python's own module came with version 3.14)."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self._file = open(path, "rb")  # noqa: SIM115  (closed with this stream)
        self._stream = pa.CompressedInputStream(self._file, "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def _jsonl(path: Path, file: IO[str]) -> Iterator[Record]:
    pairs = _Pairs()
    for number, line in enumerate(file, 1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                yield where, _checked(_parse(line.strip(), where, pairs), where, pairs)
            except CorpusError as error:
                yield where, error


def _checked(value: Any, where: str, pairs: _Pairs) -> dict[str, Any]:
    """The record, if it is an object in which no key occurs twice."""
    if not isinstance(value, dict):
        raise CorpusError(f"{where}: expected an object with named columns, found {_kind(value)}")
    if pairs.found_twice and (key := _key_twice(value)) is not None:
        raise CorpusError(f"{where}: the key {key!r} occurs twice, with different values")
    return value


def _json(path: Path, file: IO[str]) -> Iterator[Record]:
    text = file.read()
    if not text.strip():
        return
    hint = "A file with one record a line must have a name that ends in .jsonl."
    pairs = _Pairs()
    try:
        value = _parse(text, str(path), pairs)
    except CorpusError as error:
        raise CorpusError(str(error), hint=hint) from error
    if not isinstance(value, list):
        raise CorpusError(f"{path}: expected a list of records, found {_kind(value)}", hint=hint)
    for number, record in enumerate(value, 1):
        where = f"{path}: record {number}"
        try:
            yield where, _checked(record, where, pairs)
        except CorpusError as error:
            yield where, error


def _csv(path: Path, file: IO[str]) -> Iterator[Record]:
    header = file.readline()
    delimiter = "\t" if file_format(path) == ".tsv" else _delimiter(header)
    reader = csv.DictReader(_chained(header, file), delimiter=delimiter, strict=True)
    try:
        for record in reader:
            where = f"{path}:{reader.line_num}"
            if None in record or None in record.values():
                expected = len(reader.fieldnames or ())
                yield where, CorpusError(f"{where}: expected {expected} fields as in the header")
            else:
                yield where, dict(record)
    except csv.Error as error:
        raise CorpusError(
            f"{path}:{reader.reader.line_num}: {error}",
            hint="Use .jsonl or .parquet for texts of this length, or with quotation marks.",
        ) from error


def _chained(header: str, file: IO[str]) -> Iterator[str]:
    yield header
    yield from file


def _delimiter(header: str) -> str:
    """The most frequent delimiter in the header, outside of quotation marks; a comma if there is none."""
    return max(",;\t|", key=re.sub(r'"[^"]*"', "", header).count)


def _txt(path: Path, file: IO[str]) -> Iterator[Record]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield f"{path}:{number}", {"prompt": line.strip()}


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow.parquet as pq

    from stillhouse.corpus.store.shards import BATCH_ROWS, reading

    with reading(path), pq.ParquetFile(path, pre_buffer=False) as file:
        kept = _columns(file.schema_arrow)
        yield from _rows(path, (b.select(kept) for b in file.iter_batches(batch_size=BATCH_ROWS)))


def _arrow(path: Path) -> Iterator[Record]:
    """Arrow's stream format, which `datasets` writes, or its file format (Feather)."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        try:
            if file.read(6) == b"ARROW1":
                reader = pa.ipc.open_file(file)
                batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
            else:
                file.seek(0)
                batches = reader = pa.ipc.open_stream(file)
            kept = _columns(reader.schema)
            yield from _rows(path, (batch.select(kept) for batch in batches))
        except pa.ArrowException as error:
            raise CorpusError(f"{path} is not readable as Arrow: {str(error).splitlines()[0]}") from error


def _columns(schema: Any) -> list[int]:
    """Indices of the columns to read: times and dates are never tags, and Python cannot hold all of them."""
    import pyarrow as pa

    return [i for i, field in enumerate(schema) if not pa.types.is_temporal(field.type)]


def _rows(path: Path, batches: Iterator[Any]) -> Iterator[Record]:
    number = 0
    for batch in batches:
        for record in batch.to_pylist():
            number += 1
            yield f"{path}: row {number}", _without_nulls(record)


def _without_nulls(value: Any) -> Any:
    """``value`` without null fields: in Arrow, every struct of a column has the fields of all of them."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


_TEXT_READERS: dict[str, Callable[[Path, IO[str]], Iterator[Record]]] = {
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".tsv": _csv,
    ".txt": _txt,
}
_ARROW_READERS: dict[str, Callable[[Path], Iterator[Record]]] = {".arrow": _arrow, ".parquet": _parquet}
FORMATS = tuple(sorted({**_TEXT_READERS, **_ARROW_READERS}))
"""Suffixes of the files that can be read."""


def _parse(text: str, where: str, pairs: _Pairs) -> Any:
    try:
        pairs.found_twice = False
        return pairs.decode(text)
    except json.JSONDecodeError as error:
        location = where if error.lineno == 1 else f"{where}:{error.lineno}"
        snippet = " ".join(error.doc[error.pos : error.pos + 30].split()) or "the end"
        problem = error.msg.removesuffix(" at")  # "Unterminated string starting at"
        raise CorpusError(
            f"{location}: not JSON: {problem} at column {error.colno}, found {snippet!r}"
        ) from error
    except (ValueError, RecursionError) as error:  # thousands of digits or of nested lists
        raise CorpusError(f"{where}: not readable as JSON: {error}") from error


class _Pairs:
    """Decodes JSON, and remembers whether an object of the last text had two values for one key."""

    def __init__(self) -> None:
        self.found_twice = False
        self.decode = json.JSONDecoder(object_pairs_hook=self).decode

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) < len(pairs):
            for key, value in pairs:
                if value != record[key]:
                    # Not raised here: in a .json file, one such record must not hide the others.
                    self.found_twice = True
                    return {_TWICE: key}
        return record


def _key_twice(value: Any) -> str | None:
    """The first key with two values inside of ``value``."""
    if isinstance(value, dict):
        if _TWICE in value:
            return value[_TWICE]
        value = list(value.values())
    if isinstance(value, list):
        return next((key for item in value if (key := _key_twice(item)) is not None), None)
    return None


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
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path} is not UTF-8 text: {error.reason} (byte 0x{error.object[error.start]:02x})",
            hint=f"If it is Windows-1252: iconv -f WINDOWS-1252 -t UTF-8 {path} > utf8{path.suffix}",
        ) from error
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise CorpusError(f"{path} is damaged: {error}") from error
    except OSError as error:  # e.g. a name that is too long, or a damaged .gz or .zst file
        raise CorpusError(f"{str(path)[:200]} cannot be read: {error.strerror or error}") from error
