"""The official JavaScript client.

Skipped if node or the package is missing. To install the package:

    npm install --prefix DIRECTORY openai
    STILLHOUSE_NPM=DIRECTORY python -m pytest tests/serve/test_openai_client_js.py
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from running_server import RunningServer

pytestmark = pytest.mark.slow

PACKAGE = Path(os.environ.get("STILLHOUSE_NPM", "")) / "node_modules" / "openai"
NODE = shutil.which("node")


@pytest.fixture
def running(tiny_teacher):
    started = RunningServer(f"tiny={tiny_teacher}")
    yield started
    started.client.close()
    assert started.stop()[0] == 0


@pytest.mark.skipif(NODE is None, reason="node is not installed")
@pytest.mark.skipif(
    not (PACKAGE / "index.mjs").is_file(), reason="STILLHOUSE_NPM names no directory with the openai package"
)
def test_the_javascript_client_is_served_as_the_python_one(running):
    script = Path(__file__).with_name("openai_client.mjs")
    done = subprocess.run(
        [str(NODE), script, running.address, PACKAGE.absolute(), "tiny"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    hello = [{"role": "user", "content": "Say hello."}]
    whole = running.client.chat.completions.create(model="tiny", messages=hello, max_tokens=12, temperature=0)
    assert whole.usage
    assert results["models"] == ["tiny"]
    assert results["whole"] == results["streamed"] == results["helper"] == whole.choices[0].message.content
    assert results["streamed_usage"]["total_tokens"] == results["usage"]["total_tokens"]
    assert results["usage"]["completion_tokens"] == results["logprobs"] == whole.usage.completion_tokens
    assert results["completions"] == [0, 1]
    assert results["lengths"] == pytest.approx([1, 1], abs=1e-2)
    assert results["errors"] == [
        ["NotFoundError", 404, "model", "model_not_found"],
        ["BadRequestError", 400, "temperature", None],
    ]
    assert running.idle()
