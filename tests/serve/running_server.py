"""A server to be asked by tests."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import openai
from still_command import StillProcess


class Running:
    """`still serve` in a process of its own.

    Args:
        before: a command that runs the server's, such as a tracer's.
        constants: values for module constants, as `{"stillhouse.serve.security.BODY_TIMEOUT_S": 2}`, so that
            a test need not wait.
    """

    def __init__(self, *models, key=None, options=(), before=(), constants=None):
        assert not (before and constants)
        arguments = ["serve", *models, "--port", "0", *options]
        secret = {"STILLHOUSE_API_KEY": key} if key else {}
        environment = {"OMP_NUM_THREADS": "2", **secret}
        if before:
            descriptor, path = tempfile.mkstemp(prefix="still-")
            self.errors = Path(path)
            command = [*before, sys.executable, "-m", "stillhouse", *arguments]
            self.process = subprocess.Popen(command, stderr=descriptor, env={**os.environ, **environment})
            os.close(descriptor)
        else:
            self.process = StillProcess(*arguments, constants=constants, **environment)
            self.errors = self.process.stderr_path
        self.address = self.first_line().split()[0]
        self.port = int(self.address.rpartition(":")[2])
        self.client = openai.OpenAI(base_url=f"{self.address}/v1", api_key=key or "none", max_retries=0)
        self.wait()

    def first_line(self):
        for _ in range(2000):
            if "\n" in self.heard():
                return self.heard()
            assert self.process.poll() is None, self.heard()
            time.sleep(0.1)
        raise AssertionError("the server says nothing")

    def heard(self):
        return self.errors.read_text("utf-8")

    def wait(self):
        for _ in range(600):
            try:
                return self.get("/health")
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the server did not come up")

    def get(self, path):
        with urllib.request.urlopen(self.address + path, timeout=30) as reply:
            return json.loads(reply.read())

    def idle(self):
        for _ in range(300):
            if self.get("/health")["answers"] == 0:
                return True
            time.sleep(0.05)
        return False

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self):
        """Status and words of a server that was told to end."""
        status = self.process.wait(timeout=60)
        return status, self.heard()
