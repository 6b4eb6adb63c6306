"""A server to be asked by tests."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

import openai

WITH_LIMITS = """
import importlib, json, sys
from stillhouse.cli import entry
for place, value in json.loads(sys.argv.pop(1)).items():
    module, _, name = place.rpartition(".")
    module = importlib.import_module(f"stillhouse.serve.{module}")
    assert hasattr(module, name), place
    setattr(module, name, value)
entry()
"""


class Running:
    """`still serve` in a process of its own.

    Args:
        before: a command that runs the server's, such as a tracer's.
        limits: constants of stillhouse.serve, as `uvicorn_protocol.HEAD_S`, and their values here, so that a
            test need not wait.
    """

    def __init__(self, *models, key=None, options=(), before=(), limits=()):
        environment = {"OMP_NUM_THREADS": "2", **os.environ}
        environment.pop("STILLHOUSE_API_KEY", None)
        if key:
            environment["STILLHOUSE_API_KEY"] = key
        program = ["-c", WITH_LIMITS, json.dumps(limits)] if limits else ["-m", "stillhouse"]
        command = [*before, sys.executable, *program, "serve", *models, "--port", "0", *options]
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed in stop()
        self.process = subprocess.Popen(command, stderr=self.said, env=environment)
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
        self.said.seek(0)
        return self.said.read()

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
        said = self.heard()
        self.said.close()
        return status, said
