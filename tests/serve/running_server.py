"""A running server for tests."""

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


class RunningServer:
    """`still serve` in a process of its own.

    Args:
        before: a command in front of the server's, such as a tracer's.
        constants: values for module constants, such as `{"stillhouse.serve.security.BODY_TIMEOUT_S": 2}`, so
            that a test does not wait for long.
    """

    def __init__(self, *models, key=None, options=(), before=(), constants=None):
        assert not (before and constants)
        arguments = ["serve", *models, "--port", "0", *options]
        secret = {"STILLHOUSE_API_KEY": key} if key else {}
        environment = {"OMP_NUM_THREADS": "2", **secret}
        if before:
            descriptor, path = tempfile.mkstemp(prefix="still-")
            self.log_path = Path(path)
            command = [*before, sys.executable, "-m", "stillhouse", *arguments]
            self.process = subprocess.Popen(command, stderr=descriptor, env={**os.environ, **environment})
            os.close(descriptor)
        else:
            self.process = StillProcess(*arguments, constants=constants, **environment)
            self.log_path = self.process.stderr_path
        self.address = self.first_line().split()[0]
        self.port = int(self.address.rpartition(":")[2])
        self.client = openai.OpenAI(base_url=f"{self.address}/v1", api_key=key or "none", max_retries=0)
        self.wait_until_ready()

    def first_line(self):
        for _ in range(2000):
            if "\n" in self.log():
                return self.log()
            assert self.process.poll() is None, self.log()
            time.sleep(0.1)
        raise AssertionError("the server prints nothing")

    def log(self):
        return self.log_path.read_text("utf-8")

    def wait_until_ready(self):
        for _ in range(600):
            try:
                return self.get("/health")
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the server did not start")

    def get(self, path):
        with urllib.request.urlopen(self.address + path, timeout=30) as reply:
            return json.loads(reply.read())

    def idle(self):
        """Whether no answer is in progress, after some waiting."""
        for _ in range(300):
            if self.get("/health")["answers"] == 0:
                return True
            time.sleep(0.05)
        return False

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.wait_stopped()

    def wait_stopped(self):
        """Returns exit status and log after a termination signal."""
        status = self.process.wait(timeout=60)
        return status, self.log()
