"""Nothing leaves the machine: the server without a network, and every address that a session contacts."""

import json
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

import network_record
import pytest
import yaml
from running_server import RunningServer

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
PROMPT = "Quetzalcoatl"
ALONE = ["unshare", "--user", "--map-root-user", "--net"]
ATTEMPTS = """
import socket
for kind, address in (
    (socket.SOCK_STREAM, ("192.0.2.1", 443)), (socket.SOCK_STREAM, ("2001:db8::1", 443)),
    (socket.SOCK_STREAM, ("127.0.0.1", 9)), (socket.SOCK_DGRAM, ("127.0.0.1", 53)),
):
    with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, kind) as attempt:
        attempt.setblocking(False)
        attempt.connect_ex(address)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attempt:
    try:
        attempt.sendto(b"", ("192.0.2.2", 9))
    except OSError:
        pass
"""


@pytest.fixture(scope="module")
def online():
    """The environment of a user who has not switched any library offline."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
            patch.delenv(name, raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture
def record(online, tmp_path):
    if not network_record.can_trace(tmp_path):
        pytest.skip("no strace here, or the kernel does not permit tracing")
    return tmp_path / "calls"


def test_a_conversation_without_any_network(online):
    if shutil.which("unshare") is None or subprocess.run([*ALONE, "true"], check=False).returncode:
        pytest.skip("this kernel gives an ordinary user no network namespace")
    ended = subprocess.run(
        [*ALONE, sys.executable, HERE / "isolated_conversation.py"],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    # The control: the same namespace has no route to anywhere.
    assert set(result["refused"]) <= {"ENETUNREACH", "EADDRNOTAVAIL", "EAFNOSUPPORT"}
    assert result["refused"][0] == "ENETUNREACH"
    assert len(result["answers"]) == 2 and all(result["answers"])
    assert result["status"] == 0


def test_the_record_sees_what_would_leave(record):
    subprocess.run([*network_record.tracer(record), sys.executable, "-c", ATTEMPTS], check=True)
    lines = network_record.calls(record)
    left = network_record.leaving(lines)
    for address in ("192.0.2.1", "192.0.2.2", "2001:db8::1", "htons(53)"):
        assert any(address in line for line in left), address
    assert any("htons(9)" in line and "127.0.0.1" in line for line in lines)
    assert not any("htons(9)" in line and "127.0.0.1" in line for line in left)


def test_a_session_of_the_server_speaks_to_nobody_else(record, tiny_teacher):
    unasked = "far=api:http://192.0.2.1:8000/v1#m"
    running = RunningServer(
        "embedded:smollm2", f"tiny={tiny_teacher}", unasked, before=network_record.tracer(record)
    )
    with closing(running.client):
        for model in ("smollm2", "tiny"):
            options = {"model": model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 6}
            assert running.client.chat.completions.create(**options).choices
            assert list(running.client.chat.completions.create(**options, stream=True))
            broken_off = running.client.chat.completions.create(**options | {"max_tokens": 400}, stream=True)
            next(iter(broken_off))
            broken_off.close()
            assert running.idle()
        assert running.client.embeddings.create(model="tiny", input=PROMPT).data
    for path in ("/", *set(re.findall(r'(?:src|href)="(/page/[^"]+)"', text(running, "/")))):
        assert text(running, path)
    status, log = running.stop()
    assert status == 0
    assert not re.search(f"{PROMPT}|Traceback", log), log
    assert network_record.leaving(network_record.calls(record)) == []


def test_a_run_speaks_to_nobody_else(record, tiny_teacher, questions, tmp_path):
    recipe = {
        "name": "alone",
        "teacher": {"model": str(tiny_teacher), "terms": "apache-2.0"},
        "prompts": {"source": str(questions), "held_out": 8},
        "collect": {"max_tokens": 8},
        "filter": {"truncated": False},
        "student": {"init": "prune", "layers": 2},
        "objective": {"kind": "forward_kl", "loss_on": "all"},
        "train": {"epochs": 1, "batch_tokens": 128, "micro_tokens": 128, "max_length": 64},
        "evaluate": {"prompts": 2, "max_tokens": 8},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    ended = subprocess.run(
        [*network_record.tracer(record), sys.executable, "-m", "stillhouse", "run", "recipe.yaml"],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "runs" / "alone" / "report.json").is_file()
    assert network_record.leaving(network_record.calls(record)) == []


def test_llama_cpp_s_own_port_is_on_loopback_and_asks_for_its_key(online):
    if not Path("/proc/net/tcp").exists():
        pytest.skip("needs /proc to find a process's ports")
    running = RunningServer("embedded:smollm2")
    with closing(running.client):
        assert running.client.chat.completions.create(
            model="smollm2", messages=[{"role": "user", "content": "Hello."}], max_tokens=2
        )
    listening = ports(running.process.pid)
    running_alone = {port for _, port in listening} - {running.port}
    assert {address for address, _ in listening} == {"0100007F"}
    assert running_alone  # otherwise this test checks nothing
    for port in running_alone:
        for path, body in {"/v1/completions": b'{"prompt":"x","n_predict":1}', "/slots": None}.items():
            for key in (None, "wrong"):
                assert status(f"http://127.0.0.1:{port}{path}", body, key) == 401, path
    running.stop()


def text(running, path):
    with urllib.request.urlopen(running.address + path, timeout=30) as reply:
        return reply.read().decode()


def status(address, body, key):
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    try:
        with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=30) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


def ports(pid):
    """Address (hexadecimal, as the kernel writes it) and port of what the process listens on."""
    files = Path(f"/proc/{pid}/fd").iterdir()
    sockets = {str(file.readlink()) for file in files if file.is_symlink()}
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                address, port = fields[1].split(":")
                listening.add((address, int(port, 16)))
    return listening
