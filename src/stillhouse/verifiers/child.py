"""A long-lived child process that scores, and that is killed when it hangs.

Scorers of others (math-verify, reasoning-gym, a user's function) may loop, crash the
interpreter or use SIGALRM, which Python allows on a main thread only. So each runs in a
process of its own: one JSON line in, one out. A child that is late is killed with its
process group, and the next question starts another. It is no sandbox: it may do all that
this process may.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from stillhouse.verifiers.types import VerifierFailure

START_S = 120.0
"""Seconds that the imports of a scorer may take (sympy on a busy machine)."""


class LoadError(Exception):
    """The scorer cannot be loaded at all."""


class Child:
    """Scores with one scorer of :mod:`.worker`; any number of threads may ask, one after another."""

    def __init__(self, scorer: Mapping[str, Any]) -> None:
        self._scorer = dict(scorer)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._buffer = b""
        self.started = 0

    def start(self) -> None:
        """Starts the process where none is there.

        Raises:
            LoadError: the scorer does not load; the message says why.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._buffer = b""
        self.started += 1
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker", json.dumps(self._scorer)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        try:
            ready = self._read(START_S)
        except VerifierFailure as failure:
            self.close()
            raise LoadError(str(failure)) from failure
        if "error" in ready:
            self.close()
            raise LoadError(ready["error"])

    def ask(self, question: Mapping[str, Any], timeout_s: float) -> float:
        """The scorer's number for ``question``.

        Raises:
            VerifierFailure: it raised, died, was late (then it is killed), or answered with no number.
        """
        with self._lock:
            try:
                self.start()
            except LoadError as error:
                raise VerifierFailure(str(error)) from error
            assert self._process is not None and self._process.stdin is not None
            try:
                self._process.stdin.write(json.dumps(question).encode() + b"\n")
                self._process.stdin.flush()
                reply = self._read(timeout_s)
            except VerifierFailure:
                self.close()
                raise
            except OSError as error:
                self.close()
                raise VerifierFailure("the scorer died") from error
        if "error" in reply:
            raise VerifierFailure(reply["error"])
        return float(reply["value"])

    def close(self) -> None:
        """Kills the process and all of its group."""
        process, self._process = self._process, None
        if process is None:
            return
        kill_group(process)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _read(self, timeout_s: float) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise VerifierFailure(f"no verdict within {timeout_s:g} s")
            piece = os.read(descriptor, 65536)
            if not piece:
                raise VerifierFailure("the scorer died")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            return json.loads(line)
        except ValueError as error:
            raise VerifierFailure("the scorer answered with no JSON") from error


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills a process started in a session of its own, with its group, and waits for it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
