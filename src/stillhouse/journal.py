"""An append-only journal of JSON lines that survives the death of the process.

A written line is with the operating system, which may hold the last seconds in memory: a power cut can lose
them. A torn last line, from a process that died while writing it, does not count: readers skip it, and the
next writer removes it.
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
        """Writes one line. Lone surrogates become ``?``, since parquet cannot hold them.

        Raises:
            StorageError: the disk is full; the journal is then as it was before.
        """
        line = memoryview((json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
        try:
            with storage_errors(self.path):
                written = 0
                while written < len(line):  # os.write may write less than it is given
                    written += os.write(self._file, line[written:])
        except OSError:
            os.ftruncate(self._file, self._length)
            raise
        self._length += len(line)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Streams the rows of a journal without a torn last line; none if there is no file.

    Raises:
        CorpusError: a whole line is not a JSON object; the message names file and line.
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
    """The offset after the last newline, searched from the end of the file."""
    end = os.fstat(file).st_size
    while end:
        start = max(0, end - 65536)
        position = os.pread(file, end - start, start).rfind(b"\n")
        if position >= 0:
            return start + position + 1
        end = start
    return 0
