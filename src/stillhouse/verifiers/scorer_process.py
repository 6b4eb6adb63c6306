"""A long-lived child process that scores answers, and is killed when it hangs.

Scorers of others (math-verify, reasoning-gym, a user's function) may loop, crash the interpreter or use
SIGALRM, which Python allows on a main thread only. So each runs in its own process. A late one is killed and
the next question starts another. It is no sandbox: it may do all that this process may.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from typing import Any

from stillhouse.child_process import ChildDied, ChildProcess, ChildTimeout, import_path
from stillhouse.verifiers.types import VerifierFailure

START_S = 120.0
"""Seconds that the imports of a scorer may take (sympy on a busy machine)."""


class LoadError(Exception):
    """The scorer cannot be loaded."""


class ScorerProcess:
    """One scorer of :mod:`.scorer_worker` in a child process; threads may share it and take turns."""

    def __init__(self, scorer: Mapping[str, Any]) -> None:
        self._scorer = dict(scorer)
        self._process: ChildProcess | None = None
        self._lock = threading.Lock()
        self.starts = 0
        """How often a process was started."""

    def start(self) -> None:
        """Starts the process unless it is running.

        Raises:
            LoadError: the scorer does not load; the message says why.
        """
        if self._process is not None and self._process.alive:
            return
        self.close()
        self.starts += 1
        self._process = ChildProcess(
            ["-m", f"{__package__}.scorer_worker", json.dumps(self._scorer)],
            env={**os.environ, **import_path()},
        )
        try:
            ready = self._receive(self._process, START_S)
        except VerifierFailure as failure:
            self.close()
            raise LoadError(str(failure)) from failure
        if "error" in ready:
            self.close()
            raise LoadError(ready["error"])

    def score(self, question: Mapping[str, Any], timeout_s: float) -> float:
        """The scorer's number for ``question``.

        Raises:
            VerifierFailure: the scorer raised, died, was late (it is then killed), or returned no number.
        """
        with self._lock:
            try:
                self.start()
            except LoadError as error:
                raise VerifierFailure(str(error)) from error
            assert self._process is not None
            self._process.send(question)
            try:
                reply = self._receive(self._process, timeout_s)
            except VerifierFailure:
                self.close()
                raise
        if "error" in reply:
            raise VerifierFailure(reply["error"])
        return float(reply["value"])

    def close(self) -> None:
        """Kills the process with its process group."""
        if self._process is not None:
            self._process.close()
            self._process = None

    @staticmethod
    def _receive(process: ChildProcess, timeout_s: float) -> dict[str, Any]:
        try:
            return json.loads(process.receive(timeout_s))
        except ChildTimeout as error:
            raise VerifierFailure(f"no verdict within {timeout_s:g} s") from error
        except ChildDied as error:
            raise VerifierFailure("the scorer died") from error
        except ValueError as error:
            raise VerifierFailure("the scorer answered with no JSON") from error
