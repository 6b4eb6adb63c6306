"""Run in its own network namespace: brings up loopback, tries to connect elsewhere, holds a conversation.

Prints one JSON object: `refused` (the errors of the attempts), `answers` and the server's exit `status`.
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
from running_server import RunningServer

SIOCSIFFLAGS, IFF_UP = 0x8914, 1
OUTSIDE = [(socket.AF_INET, ("192.0.2.1", 443)), (socket.AF_INET6, ("2001:db8::1", 443))]


def raise_loopback():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def refusals():
    """The error name of each attempt to connect to another machine."""
    names = []
    for family, address in OUTSIDE:
        with socket.socket(family, socket.SOCK_STREAM) as attempt:
            attempt.settimeout(5)
            names.append(errno.errorcode.get(attempt.connect_ex(address), "connected"))
    return names


def converse(server):
    """Holds a conversation of two turns; returns the model's answers."""
    turns, answers = [], []
    for question in ("Name a colour.", "And another one?"):
        turns.append({"role": "user", "content": question})
        reply = server.client.chat.completions.create(
            model="smollm2", messages=turns, max_tokens=12, temperature=0
        )
        answers.append(reply.choices[0].message.content)
        turns.append({"role": "assistant", "content": answers[-1]})
    return answers


if __name__ == "__main__":
    raise_loopback()
    result = {"refused": refusals()}
    server = RunningServer("embedded:smollm2")
    with closing(server.client):
        result["answers"] = converse(server)
    result["status"], _ = server.stop()
    print(json.dumps(result))
