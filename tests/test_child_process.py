"""Child processes that speak JSON lines: answers, deadlines, and that nothing outlives its parent object."""

import json
import os
import time
from pathlib import Path

import pytest

from stillhouse.child_process import ChildDied, ChildProcess, ChildTimeout

ECHO = """
import sys
for line in sys.stdin:
    print(line.strip() * 2, flush=True)
"""


def child(code: str, **options) -> ChildProcess:
    return ChildProcess(["-c", code], env=dict(os.environ), **options)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_each_line_gets_its_answer_however_long():
    process = child(ECHO)
    for text in ("a", "ü" * 1000, "x" * 3_000_000, ""):
        process.send(text)
        assert process.receive(20).decode() == json.dumps(text) * 2
    process.close()
    assert not process.alive


def test_lines_that_come_at_once_are_received_one_by_one():
    process = child("print('a\\nb\\n\\nc')")
    assert [process.receive(20) for _ in range(4)] == [b"a", b"b", b"", b"c"]
    with pytest.raises(ChildDied):
        process.receive(20)


def test_a_late_child_still_runs_and_is_killed_with_its_descendants():
    code = """
import os, sys, time
pid = os.fork()
if pid == 0:
    time.sleep(60)
print(os.getpid(), pid, flush=True)
time.sleep(60)
"""
    process = child(code)
    pids = [int(word) for word in process.receive(20).split()]
    started = time.monotonic()
    with pytest.raises(ChildTimeout):
        process.receive(0.2)
    assert 0.15 < time.monotonic() - started < 5
    assert process.alive and all(map(running, pids))
    process.close()
    deadline = time.monotonic() + 5
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(running, pids))


def test_a_child_that_died_is_noticed_by_the_next_receive():
    process = child("import os; os._exit(3)")
    with pytest.raises(ChildDied):
        process.receive(20)
    process.send("x" * 1_000_000)  # nothing reads it, and nothing is raised
    with pytest.raises(ChildDied):
        process.receive(20)
    process.close()


def test_a_line_without_end_is_not_read_for_ever():
    process = child(
        "import sys\nwhile True: sys.stdout.write('x' * 1000); sys.stdout.flush()", max_line_bytes=4096
    )
    with pytest.raises(ChildDied):
        process.receive(20)
    process.close()


@pytest.mark.parametrize("ends", [True, False])
def test_patience_lets_a_child_end_by_itself(tmp_path, ends):
    after = "open(sys.argv[1], 'w').close()" if ends else "time.sleep(60)"
    code = f"import sys, time\nprint(1, flush=True)\nsys.stdin.read()\n{after}"
    process = ChildProcess(["-c", code, str(tmp_path / "ended")], env=dict(os.environ), shutdown_s=2)
    process.receive(20)
    process.close()
    assert not process.alive
    assert (tmp_path / "ended").exists() == ends


def test_a_child_ends_when_nothing_refers_to_it():
    process = child("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)")
    pid = int(process.receive(20))
    assert running(pid)
    del process
    assert not running(pid)
