"""Atomic file writes: a crash at any moment leaves the old file or the new one, never half of it.

Every write of a whole file goes through here. A full disk or a missing permission becomes a
:class:`~stillhouse.errors.StorageError` that names the path.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stillhouse.errors import StillhouseError, StorageError

LOCK = ".lock"
"""File that the process writing in a directory holds (flock)."""
_INVALID_PATH = (
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENOENT,
    errno.ENAMETOOLONG,
    errno.EINVAL,
)


@contextlib.contextmanager
def storage_errors(path: str | Path) -> Iterator[None]:
    """Converts the operating system's errors while writing ``path`` into clear messages."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"the disk is full: could not write {path}",
                hint="Free some space and run the same command again.",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StorageError(
                f"no permission to write {path}",
                hint="Choose another directory with --out, or correct the permissions.",
            ) from error
        if error.errno in _INVALID_PATH:
            raise StorageError(f"cannot write {path}: {error.strerror}") from error
        raise


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; it replaces ``path`` on success and is removed otherwise."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            # Without fsync, a power cut after the rename can leave an empty file under the final name.
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yields a new directory beside ``path``, which replaces ``path`` on success and is removed otherwise.

    An existing directory is renamed first: a crash between the two renames leaves nothing at ``path``, never
    a mixture.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    old = temporary.with_suffix(".old")
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.mkdir()
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    with open(file, "rb+") as handle:
                        os.fsync(handle.fileno())
            if target.exists():
                target.rename(old)
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def atomic_write(path: str | Path, data: str | bytes) -> None:
    """Writes ``data`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


def write_secret(path: str | Path, data: str | bytes, *, if_exists: StillhouseError | None = None) -> None:
    """Writes a file that only its owner may read.

    Args:
        if_exists: raised if the file exists; None overwrites it.
    """
    target = Path(path)
    mode = os.O_TRUNC if if_exists is None else os.O_EXCL
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | mode, 0o600)
        except FileExistsError as error:
            raise if_exists or error from error
        with open(descriptor, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)


def write_json(path: str | Path, value: Any) -> None:
    """Writes ``value`` as indented JSON, atomically."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_secret_lines(path: str | Path, rows: Iterable[Any], *, if_exists: StillhouseError) -> None:
    """:func:`write_secret` of JSON lines, one for each row."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_secret(path, "".join(lines), if_exists=if_exists)


def read_json(path: str | Path) -> Any:
    """Reads a JSON file."""
    return json.loads(Path(path).read_text("utf-8"))


def read_json_lines(path: str | Path) -> list[Any]:
    """Reads a file of JSON lines."""
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def take_lock(directory: Path) -> int:
    """Creates ``directory`` and locks it for one process; closing the returned descriptor unlocks it.

    The system also unlocks it when the process dies.

    Raises:
        StorageError: another process holds the lock (or this one, through another descriptor), or the
            directory cannot be created or written.
    """
    with storage_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    # flock, not lockf: POSIX locks vanish when the process closes any other descriptor of the file.
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise StorageError(
            f"another process is writing to {directory}",
            hint="Wait until it ends, or use another directory for this run.",
        ) from error
    return lock
