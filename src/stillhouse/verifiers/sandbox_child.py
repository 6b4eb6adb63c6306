"""The child side of :mod:`.sandbox`: drops its rights, then runs the program and its tests.

It runs as a file with `python -I`, so it imports nothing of stillhouse. The job comes through standard input,
the result goes to what was standard output; the program has neither.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import struct
import sys

CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWPID = 0x10000000, 0x40000000, 0x20000000
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
NOBODY = 65534
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
WRITES = sum(1 << bit for bit in (1, 4, 5, 6, 7, 8, 9, 10, 11, 12))
"""Landlock's rights of version 1 that change files: write, remove, create."""
TRUNCATE = 1 << 14


def isolate_processes(libc: ctypes.CDLL) -> dict[str, bool]:
    """Enters new network and process namespaces.

    Root first takes the real user id of nobody, since limits on processes do not bind root.
    """
    if os.getuid() == 0:
        with contextlib.suppress(OSError):
            os.setreuid(NOBODY, -1)
    both = libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWPID) == 0
    network = both or libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0
    return {"network": network, "processes": both}


def forbid_writing(libc: ctypes.CDLL, scratch: str) -> bool:
    """Landlock: allows changes only to files below ``scratch`` and to /dev/null."""
    version = libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    rights = WRITES | (TRUNCATE if version >= 3 else 0)
    ruleset = libc.syscall(LANDLOCK_CREATE, ctypes.c_char_p(struct.pack("Q", rights)), ctypes.c_size_t(8), 0)
    if ruleset < 0:
        return False
    for path, allowed in ((scratch, rights), (os.devnull, rights & ((1 << 1) | TRUNCATE))):
        descriptor = os.open(path, os.O_PATH)
        rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed, descriptor))
        added = libc.syscall(LANDLOCK_ADD, ruleset, 1, rule, 0)
        os.close(descriptor)
        if added != 0:
            return False
    restricted = libc.syscall(LANDLOCK_RESTRICT, ruleset, 0) == 0
    os.close(ruleset)
    return restricted


def limit(job: dict, *, namespace: bool) -> None:
    """Limits memory, processor time, processes and file size; no core file."""
    # RLIMIT_NPROC counts all threads of the user, except in a new user namespace.
    existing = 0 if namespace else own_threads()
    for resource_kind, maximum in (
        (resource.RLIMIT_AS, job["memory"]),
        (resource.RLIMIT_CPU, job["cpu_s"]),
        (resource.RLIMIT_NPROC, job["processes"] + existing),
        (resource.RLIMIT_FSIZE, job["file"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(resource_kind, (maximum, maximum))


def own_threads() -> int:
    """The number of threads that this user runs already."""
    count = 0
    for name in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{name}").st_uid == os.getuid():  # noqa: PTH116
                count += len(os.listdir(f"/proc/{name}/task"))  # noqa: PTH208
    return count


def main() -> None:
    job = json.loads(sys.stdin.buffer.read())
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    result = os.dup(1)
    devnull = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(devnull, standard)
    protection = isolate_processes(libc)
    protection["files"] = forbid_writing(libc, job["scratch"])
    if protection["processes"]:
        # The namespace's first process: when it ends, the kernel kills all others in it.
        child = os.fork()
        if child:
            os.close(result)
            os.waitpid(child, 0)
            os._exit(0)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    limit(job, namespace=protection["processes"])
    run(job, result, protection)


def run(job: dict, result: int, protection: dict[str, bool]) -> None:
    """Reports the protection, runs the program and its tests, reports how they ended."""
    nonce, code, tests = job["nonce"], job["code"], job["tests"]

    def report(**values: object) -> None:
        os.write(result, json.dumps({"nonce": nonce, **values}).encode() + b"\n")

    report(protection=protection)
    job.clear()  # so that the program does not find the nonce in it
    pid = os.getpid()
    namespace: dict[str, object] = {"__name__": "__main__"}
    error = None
    try:
        exec(compile(code, "<answer>", "exec"), namespace)
        exec(compile(tests, "<tests>", "exec"), namespace)
    except BaseException as problem:
        error = f"{type(problem).__name__}: {problem}"[:300]
    if os.getpid() == pid:  # a process that the program forked gets here too
        report(error=error)
    os._exit(0)


if __name__ == "__main__":
    main()
