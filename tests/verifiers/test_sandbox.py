"""What a program in the sandbox can do and cannot."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from stillhouse.recipe import Verifier
from stillhouse.verifiers import Answer, open_verifiers
from stillhouse.verifiers.sandbox import run_python
from stillhouse.verifiers.types import VerifierFailure


def ran(code: str, tests: str = "", *, timeout_s: float = 20, memory_mb: int = 256):
    return run_python(code, tests, timeout_s=timeout_s, memory_mb=memory_mb)


def test_code_in_a_fence_is_run_with_its_tests():
    text = "Here:\n```python\ndef double(x):\n    return 2 * x\n```\nDone."
    with open_verifiers([Verifier(kind="code")]) as verifiers:
        right, wrong, none = verifiers.score(
            [
                Answer(text, tags={"answer": "assert double(2) == 4"}),
                Answer(text, tags={"answer": "assert double(2) == 5"}),
                Answer("", tags={"answer": "assert True"}),
            ]
        )
    assert (right.value, wrong.value, none.value) == (1, 0, 0)
    assert "AssertionError" in wrong.detail


@pytest.mark.parametrize("leave", ["import os; os._exit(0)", "raise SystemExit(0)", "exit()"])
def test_leaving_early_is_no_pass(leave):
    assert not ran(leave, "assert False").passed


def test_no_network():
    result = ran("import socket\nsocket.create_connection(('127.0.0.1', 9), timeout=2)")
    if not result.protection["network"]:
        pytest.skip("the kernel gives no network namespace here, and the result says so")
    assert "unreachable" in result.detail


def test_memory_is_limited():
    assert "MemoryError" in ran("block = bytearray(1 << 30)").detail


def test_file_size_is_limited():
    assert not ran("open('big', 'wb').write(b'x' * (64 << 20))").passed


def test_a_fork_bomb_is_limited_and_leaves_nothing():
    bomb = "import os, time\nfor _ in range(200):\n    if os.fork() == 0:\n        time.sleep(60)\n"
    assert "Resource temporarily unavailable" in ran(bomb).detail


def test_descendants_in_a_session_of_their_own_die_too(tmp_path):
    code = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(61.5)\ntime.sleep(61.5)\n"
    with pytest.raises(VerifierFailure, match="timed out after"):
        ran(code, timeout_s=1)
    if not ran("").protection["processes"]:
        pytest.skip("no process namespace here, and the result says so")
    time.sleep(0.2)
    commands = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            commands.append(place.read_bytes())
        except OSError:
            continue
    assert not any(b"sandbox_child" in command for command in commands)


def test_writing_outside_the_scratch_directory(tmp_path):
    target = tmp_path / "victim"
    result = ran(f"open('inside', 'w').write('x')\nopen({str(target)!r}, 'w').write('x')")
    if not result.protection["files"]:
        pytest.skip("the kernel has no Landlock, and the result says so")
    assert "PermissionError" in result.detail
    assert not target.exists()


def test_secrets_of_the_environment_and_standard_input_are_not_there(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    code = "import os, sys\nassert 'OPENAI_API_KEY' not in os.environ\nassert sys.stdin.read() == ''"
    assert ran(code).passed


def test_the_scratch_directory_is_gone_afterwards():
    result = ran("import os\nopen('f', 'w').write('x')", "raise Exception(os.getcwd())")
    assert not os.path.exists(result.detail.removeprefix("Exception: "))  # noqa: PTH110


def test_a_program_that_prints_a_verdict_is_not_believed():
    code = """
import os
for descriptor in range(3, 20):
    try:
        os.write(descriptor, b'{"error": null}\\n')
    except OSError:
        pass
"""
    assert not ran(code, "assert False").passed
