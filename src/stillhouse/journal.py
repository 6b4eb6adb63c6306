"""The journal: finished rows as JSON lines, each handed to the system before the next is taken.

A line that was written survives the death of the process (not a power cut: the system
may hold the last seconds in memory). A torn last line, from a process that died while
writing it, is no row: readers skip it and the next writer cuts it off.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stillhouse.errors import CorpusError
from stillhouse.files import storage_errors


class Journal:
    """An append-only file of JSON lines, open for writing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with storage_errors(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._length = _end_of_last_line(self._file)
            os.ftruncate(self._file, self._length)

    def append(self, value: dict[str, Any]) -> None:
        """Writes one line. A text's lone surrogates become ``?``: parquet could not hold them.

        Raises:
            StorageError: the disk is full; the journal is then as it was before.
        """
        line = memoryview((json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
        try:
            with storage_errors(self.path):
                written = 0
                while written < len(line):
                    written += os.write(self._file, line[written:])
        except OSError:
            os.ftruncate(self._file, self._length)
            raise
        self._length += len(line)

    def close(self) -> None:
        """Closes the file and leaves it in place."""
        os.close(self._file)


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a journal, without a torn last line; nothing where there is no file.

    Raises:
        CorpusError: a line that is whole is not a JSON object; the message names file and line.
    """
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise CorpusError(f"{path}:{number}: the journal is damaged: {error}") from error
            if not isinstance(value, dict):
                raise CorpusError(f"{path}:{number}: the journal is damaged: expected an object")
            yield value


def _end_of_last_line(file: int) -> int:
    """The offset just after the last newline, looked for from the end."""
    end = os.fstat(file).st_size
    while end:
        start = max(0, end - 65536)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
