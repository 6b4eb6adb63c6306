"""Runs Python that a model wrote against tests, in a child with little room.

What the child gets: a scratch directory as its working directory (removed afterwards), an
empty standard input, an environment without this process's variables, limits on memory,
processor time, processes and file sizes; where the kernel allows it to ordinary users, a
network namespace with nothing in it, a process namespace that dies as a whole, and
(Landlock) no right to write outside the scratch directory. When the time is over, its
process group is killed. Every result says which of the three the kernel gave.

What this does NOT protect against:

- reading: the program can read every file that this process's user can read;
- a hole in the kernel: the program runs on it directly, with no filter of system calls;
- a program that sets out to deceive its tests: both share one interpreter, so code that
  looks for the tests can change them. An early exit alone does not count as passing;
- where a namespace or Landlock is refused (some containers), the network, and writing;
- signals and side channels towards other processes of the same user without a namespace.

For text of a model that may be hostile, put the whole run into a virtual machine.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from stillhouse.child_process import ChildDied, ChildProcess, ChildTimeout
from stillhouse.console import console
from stillhouse.recipe import Verifier
from stillhouse.verifiers.extract import extract
from stillhouse.verifiers.types import Score, VerifierFailure

PROCESSES = 16
FILE_MB = 16
REPLY_BYTES = 65536
_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Ran:
    """What became of a program."""

    passed: bool
    detail: str
    protection: dict[str, bool]
    """``network``, ``processes``, ``files``: whether the kernel gave that protection."""


def run_tests(text: str, tests: str, settings: Verifier) -> Score:
    """1 when the program in ``text`` and then its ``tests`` (statements, say asserts) end without error.

    The program is the last fenced block of code, or else what ``settings.extract`` names.
    """
    blocks = _FENCE.findall(text)
    code = blocks[-1] if blocks else extract(text, settings.extract)
    if code is None:
        return Score(0.0, "no code")
    ran = run_python(code, tests, timeout_s=settings.timeout_s, memory_mb=settings.memory_mb)
    lacking = tuple(name for name, given in ran.protection.items() if not given)
    if lacking:
        _warn(lacking)
    return Score(float(ran.passed), ran.detail)


def run_python(code: str, tests: str, *, timeout_s: float, memory_mb: int) -> Ran:
    """Runs ``code`` and then ``tests`` in one namespace, in a child that is gone afterwards.

    Raises:
        VerifierFailure: the child could not be set up, or was killed because it was late.
    """
    nonce = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="still-code-", ignore_cleanup_errors=True) as scratch:
        job = {
            "code": code,
            "tests": tests,
            "nonce": nonce,
            "scratch": scratch,
            "cpu_s": math.ceil(timeout_s) + 1,
            "memory": memory_mb * 2**20,
            "processes": PROCESSES,
            "file": FILE_MB * 2**20,
        }
        child = ChildProcess(
            ["-I", str(Path(__file__).with_name("sandbox_child.py"))],
            cwd=scratch,
            env={"PATH": os.defpath, "HOME": scratch, "TMPDIR": scratch, "OMP_NUM_THREADS": "1"},
            max_line_bytes=REPLY_BYTES,
        )
        try:
            child.send(job)
            child.close_input()
            lines, late = _receive_two(child, timeout_s)
        finally:
            child.close()
    return _judge(lines, nonce, late, timeout_s)


def _judge(lines: list[bytes], nonce: str, late: bool, timeout_s: float) -> Ran:
    """The first line says what protects, the second (with the nonce) how it ended."""
    replies: list[dict[str, Any]] = []
    for line in lines:
        with contextlib.suppress(ValueError):
            reply = json.loads(line)
            if isinstance(reply, dict) and reply.get("nonce") == nonce:
                replies.append(reply)
    if not replies:
        raise VerifierFailure("the sandbox did not start")
    if late:
        raise VerifierFailure(f"no end within {timeout_s:g} s")
    protection = replies[0]["protection"]
    if len(replies) < 2:
        return Ran(False, "the program left before its tests ended", protection)
    error = replies[1]["error"]
    return Ran(error is None, error or "", protection)


def _receive_two(child: ChildProcess, timeout_s: float) -> tuple[list[bytes], bool]:
    """Up to two lines of the child, and whether time was over before it had written them or ended."""
    deadline = time.monotonic() + timeout_s
    lines: list[bytes] = []
    try:
        while len(lines) < 2:
            lines.append(child.receive(max(0.0, deadline - time.monotonic())))
    except ChildTimeout:
        return lines, True
    except ChildDied:
        pass
    return lines, False


@cache
def _warn(lacking: tuple[str, ...]) -> None:
    console.warn(f"the kernel gives the sandbox of `code` no protection of: {', '.join(lacking)}")
    console.hint("See docs/verifiers.md; run this in a virtual machine if the model's code may be hostile.")
