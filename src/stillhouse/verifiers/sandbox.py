"""Runs Python that a model wrote, with its tests, in a restricted child process.

The child has a scratch directory as its working directory (removed afterwards), an empty standard input, an
environment without this process's variables, and limits on memory, processor time, processes and file sizes.
If the kernel allows it to ordinary users, it also has an empty network namespace, a process namespace that
dies as a whole, and (Landlock) no right to write outside the scratch directory. At the time-out its process
group is killed. Every result reports which of these three protections the kernel gave.

This does NOT protect against:

- reading: the program can read every file that this process's user can read;
- kernel vulnerabilities: there is no filter of system calls;
- programs that deceive their tests: both share one interpreter, so code that looks for the tests can change
  them. An early exit alone does not count as passing;
- network access and writing where a namespace or Landlock is refused (some containers);
- signals and side channels to other processes of the same user without a namespace.

If a model's code may be hostile, put the whole run into a virtual machine.
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
class ProgramResult:
    """The result of a program and its tests."""

    passed: bool
    detail: str
    protection: dict[str, bool]
    """Whether the kernel gave the protections ``network``, ``processes`` and ``files``."""


def run_tests(text: str, tests: str, settings: Verifier) -> Score:
    """1 if the program in ``text`` and then its ``tests`` (statements, e.g. asserts) end without an error.

    The program is the last fenced code block, or else what ``settings.extract`` extracts.
    """
    blocks = _FENCE.findall(text)
    code = blocks[-1] if blocks else extract(text, settings.extract)
    if code is None:
        return Score(0.0, "no code")
    result = run_python(code, tests, timeout_s=settings.timeout_s, memory_mb=settings.memory_mb)
    missing = tuple(name for name, active in result.protection.items() if not active)
    if missing:
        _warn(missing)
    return Score(float(result.passed), result.detail)


def run_python(code: str, tests: str, *, timeout_s: float, memory_mb: int) -> ProgramResult:
    """Runs ``code`` and then ``tests`` in one namespace, in a child that is gone afterwards.

    Raises:
        VerifierFailure: the child could not be set up, or timed out.
    """
    # A line without the nonce is ignored: a program may find the descriptor that results go to.
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


def _judge(lines: list[bytes], nonce: str, late: bool, timeout_s: float) -> ProgramResult:
    """The first line reports the protection, the second how the program ended; both have the nonce."""
    replies: list[dict[str, Any]] = []
    for line in lines:
        with contextlib.suppress(ValueError):
            reply = json.loads(line)
            if isinstance(reply, dict) and reply.get("nonce") == nonce:
                replies.append(reply)
    if not replies:
        raise VerifierFailure("the sandbox did not start")
    if late:
        raise VerifierFailure(f"timed out after {timeout_s:g} s")
    protection = replies[0]["protection"]
    if len(replies) < 2:
        return ProgramResult(False, "the program exited before its tests ended", protection)
    error = replies[1]["error"]
    return ProgramResult(error is None, error or "", protection)


def _receive_two(child: ChildProcess, timeout_s: float) -> tuple[list[bytes], bool]:
    """Up to two lines of the child, and whether it timed out before it wrote them or ended."""
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
def _warn(missing: tuple[str, ...]) -> None:
    console.warn(f"the kernel gives the sandbox of `code` no protection of: {', '.join(missing)}")
    console.hint("See docs/verifiers.md; run this in a virtual machine if the model's code may be hostile.")
