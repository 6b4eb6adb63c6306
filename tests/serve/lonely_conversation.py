"""Run in a network namespace of its own: raises loopback, shows that there is no way out, and converses.

Writes one JSON object: `refused` (what attempts to leave said) and `answers`.
"""

import errno
import fcntl
import json
import socket
import struct
import sys
from contextlib import closing
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # still_command
from running_server import Running

SIOCSIFFLAGS, IFF_UP = 0x8914, 1
OUTSIDE = [(socket.AF_INET, ("192.0.2.1", 443)), (socket.AF_INET6, ("2001:db8::1", 443))]


def raise_loopback():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def refusals():
    """The name of the error that each attempt to leave ends with."""
    names = []
    for family, address in OUTSIDE:
        with socket.socket(family, socket.SOCK_STREAM) as attempt:
            attempt.settimeout(5)
            names.append(errno.errorcode.get(attempt.connect_ex(address), "connected"))
    return names


def converse(running):
    """Two turns with the model; its answers."""
    turns, answers = [], []
    for question in ("Name a colour.", "And another one?"):
        turns.append({"role": "user", "content": question})
        reply = running.client.chat.completions.create(
            model="smollm2", messages=turns, max_tokens=12, temperature=0
        )
        answers.append(reply.choices[0].message.content)
        turns.append({"role": "assistant", "content": answers[-1]})
    return answers


if __name__ == "__main__":
    raise_loopback()
    said = {"refused": refusals()}
    running = Running("embedded:smollm2")
    with closing(running.client):
        said["answers"] = converse(running)
    said["status"], _ = running.stop()
    print(json.dumps(said))
