"""Records with strace every address that a command and its children contact.

It records connect, sendto, sendmsg and sendmmsg with an address, and io_uring, which can do the same without
being seen. Loopback and Unix sockets stay on the machine; a DNS query (port 53, or systemd's resolver) counts
as leaving it, wherever it is sent. Netlink does not count: it queries only this kernel.
"""

import re
import shutil
import subprocess
import time
from pathlib import Path

CALLS = "connect,sendto,sendmsg,sendmmsg,io_uring_setup"
INET = re.compile(r'sin6?_port=htons\((\d+)\).*?(?:inet_addr\("|inet_pton\(AF_INET6, ")([^"]+)"')
STAYS = re.compile(r"127\.|::1$|::ffff:127\.")


def tracer(log: Path) -> list[str]:
    """The prefix of a traced command, which keeps its process id."""
    return [
        "strace",
        "-D",
        "-f",
        "--seccomp-bpf",
        "-q",
        "-s",
        "256",
        "-e",
        "signal=none",
        "-e",
        f"trace={CALLS}",
        "-o",
        str(log),
    ]


def can_trace(directory: Path) -> bool:
    """Whether strace is installed and the kernel permits tracing."""
    if shutil.which("strace") is None:
        return False
    log = directory / "probe"
    ended = subprocess.run([*tracer(log), "true"], check=False, capture_output=True)
    return ended.returncode == 0 and _ended(log, seconds=5)


def calls(log: Path) -> list[str]:
    """The recorded calls of a command that has ended."""
    assert _ended(log, seconds=30), "the record has no end"
    return [line for line in log.read_text().splitlines() if "+++" not in line]


def leaving(lines: list[str]) -> list[str]:
    """The calls that leave this machine, or may do so unseen."""
    return [line for line in lines if _leaves(line)]


def _leaves(line: str) -> bool:
    if "io_uring_setup(" in line or "io.systemd.Resolve" in line:
        return True
    addresses = INET.findall(line)
    if not addresses:
        # An address of an unknown family counts as leaving. Sends without an address use an earlier connect.
        return "sa_family=AF_" in line and not re.search("AF_UNIX|AF_NETLINK|AF_UNSPEC", line)
    return any(port == "53" or not STAYS.match(address) for port, address in addresses)


def _ended(log: Path, *, seconds: float) -> bool:
    """Waits for the last line of the first process, which the tracer writes at the very end."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        lines = log.read_text().splitlines() if log.exists() else []
        alive = {line.split()[0] for line in lines}
        if lines and alive == {line.split()[0] for line in lines if "+++" in line}:
            return True
        time.sleep(0.05)
    return False
