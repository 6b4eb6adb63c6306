"""A child process that exchanges JSON lines with this one: one line in, one line out.

For code that may loop, crash the interpreter or fill memory. This module starts the child, waits for its
lines with a deadline, and kills it with its process group. It is no sandbox: limits on the child's memory,
processor time and rights are set by the caller's child program.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

READ_BYTES = 65536


class ChildTimeout(Exception):
    """The child wrote no line in time."""


class ChildDied(Exception):
    """The child closed its output, or wrote a longer line than is read."""


class ChildProcess:
    """A running child in a session of its own, so that Ctrl-C does not reach it. For one thread at a time.

    The child is ended when this object is closed or collected, and when the interpreter exits.

    Args:
        arguments: of this Python interpreter.
        max_line_bytes: longest line that is read.
        shutdown_s: seconds that a child has to end by itself once its input is closed, before it is killed.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str | Path | None = None,
        max_line_bytes: int | None = None,
        shutdown_s: float = 0.0,
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=cwd,
            env=env,
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        # poll, not select: a server's descriptors may be above 1023
        self._poll = select.poll()
        self._poll.register(self._output, select.POLLIN)
        self._unread = bytearray()
        self._max_line_bytes = max_line_bytes
        self._end = weakref.finalize(self, _end, self._process, shutdown_s)

    @property
    def alive(self) -> bool:
        """Whether the process is still running."""
        return self._process.poll() is None

    def send(self, value: Any) -> None:
        """Writes ``value`` as a line; a child that has died is noticed by :meth:`receive`."""
        with contextlib.suppress(OSError):
            self._input.write(json.dumps(value).encode() + b"\n")
            self._input.flush()

    def close_input(self) -> None:
        """Ends the child's input."""
        with contextlib.suppress(OSError):
            self._input.close()

    def receive(self, timeout_s: float | None = None) -> bytes:
        """The next line of the child, without its end.

        Raises:
            ChildTimeout: none came within ``timeout_s`` seconds; the child still runs.
            ChildDied: the output ended, or the line is longer than ``max_line_bytes``.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        end = self._unread.find(b"\n")
        while end < 0:
            if self._max_line_bytes is not None and len(self._unread) >= self._max_line_bytes:
                raise ChildDied
            if not self._poll.poll(
                None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            ):
                raise ChildTimeout
            chunk = os.read(self._output.fileno(), READ_BYTES)
            if not chunk:
                raise ChildDied
            # Only the new chunk is searched: a rendered template may be a line of megabytes.
            position = chunk.find(b"\n")
            end = -1 if position < 0 else len(self._unread) + position
            self._unread += chunk
        line = bytes(self._unread[:end])
        del self._unread[: end + 1]
        return line

    def close(self) -> None:
        """Ends the child; killed with its process group unless it exits within ``shutdown_s``."""
        self._end()


def import_path() -> dict[str, str]:
    """The environment variable with which a child imports from where this process does."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _end(process: subprocess.Popen[bytes], shutdown_s: float) -> None:
    pipes = (process.stdin, process.stdout)
    if shutdown_s:
        _close(*pipes)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(shutdown_s)
            return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _close(*pipes)


def _close(*pipes: Any) -> None:
    for pipe in pipes:
        with contextlib.suppress(OSError):
            pipe.close()
