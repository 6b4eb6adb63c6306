"""`still push` against a stand-in of the Hub, driven by the real client of huggingface_hub."""

import json
import shutil
from pathlib import Path

import pytest
from hub_standin import READ_TOKEN, TOKEN, HubStandIn
from huggingface_hub import constants
from loopback import bound_server, running

from stillhouse.cli import main

# huggingface_hub passes the file to httpx as `data`, which httpx deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

CARD = "---\nlicense: apache-2.0\n---\n# A student\n"
RECIPE = """\
name: first
teacher: {model: "%s"}
prompts: {source: questions.jsonl}
student: {model: "embedded:smollm2"}
objective: {kind: cross_entropy}
"""


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server = HubStandIn()
    runner, bound, address = bound_server(server.app)
    monkeypatch.setenv("HF_ENDPOINT", address)
    with running(runner, bound):
        yield server


@pytest.fixture
def run(tiny_teacher, tmp_path) -> Path:
    """A finished run: a student with its card, and what must not be uploaded."""
    run = tmp_path / "run"
    shutil.copytree(tiny_teacher, run / "student")
    (run / "student" / "README.md").write_text(CARD)
    (run / "student" / "notes.secret").write_text("secret")
    (run / "student" / "optimizer.pt").write_bytes(b"pickle")
    write_recipe(run, "embedded:smollm2")
    return run


def write_recipe(run: Path, teacher: str) -> None:
    (run / "recipe.yaml").write_text(RECIPE % teacher)


def test_a_runs_student_arrives_with_its_card(hub, run, capsys):
    assert main(["push", str(run), "hub:me/student", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    arrived = hub.files["me/student"]
    expected = {
        path.name: path.read_bytes()
        for path in (run / "student").iterdir()
        if path.name not in ("notes.secret", "optimizer.pt")
    }
    assert arrived == expected
    assert arrived["README.md"].decode() == CARD
    assert hub.private == {"me/student": True}
    assert result["private"] and result["bytes"] == sum(map(len, expected.values()))
    assert set(result["files"]) == set(expected)
    assert result["left_out"] == ["notes.secret", "optimizer.pt"]


def test_a_dry_run_lists_files_and_sends_nothing(hub, run, capsys):
    assert main(["push", str(run / "student"), "hub:me/student", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert "model.safetensors" in out and "README.md" in out
    assert "notes.secret, optimizer.pt" in err and "nothing was sent" in err
    assert hub.requests == 0


def test_an_interrupted_upload_resumes(hub, run, capsys):
    hub.fail_commits = 1
    assert main(["push", str(run), "hub:lab/student", "--public"]) == 1
    assert "the commit was lost" in capsys.readouterr().err
    assert len(hub.sent) == 1
    assert hub.files["lab/student"] == {}
    assert main(["push", str(run), "hub:lab/student", "--public"]) == 0
    assert len(hub.sent) == 1  # the weights were not sent again
    assert "model.safetensors" in hub.files["lab/student"]
    assert hub.private == {"lab/student": False}
    capsys.readouterr()
    assert main(["push", str(run), "hub:lab/student"]) == 0
    assert "existed and is public" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("token", "message"),
    [("hf_wrong", "refuses the token"), (READ_TOKEN, "may not write to me/student"), ("", "no token")],
)
def test_token_errors_say_what_to_do(hub, run, token, message, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    assert main(["push", str(run), "hub:me/student"]) == 1
    error = capsys.readouterr().err
    assert message in error and "HF_TOKEN" in error
    assert token == "" or token not in error


def test_an_unreachable_hub_is_a_clear_error(hub, run, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", str(run), "hub:me/student"]) == 1
    assert "the upload to 127.0.0.1:9 failed" in capsys.readouterr().err


def test_offline_is_a_clear_error(hub, run, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["push", str(run), "hub:me/student"]) == 1
    assert "HF_HUB_OFFLINE" in capsys.readouterr().err


def test_refused_terms_send_nothing(hub, run, capsys):
    write_recipe(run, "api:https://api.openai.com/v1#gpt-5")
    assert main(["push", str(run), "hub:me/student", "--purpose", "competing"]) == 3
    write_recipe(run, "api:https://unknown.example/v1#mystery")
    assert main(["push", str(run), "hub:me/student"]) == 3
    assert hub.requests == 0
    capsys.readouterr()
    assert main(["push", str(run), "hub:me/student", "--accept-terms", "my own", "--dry-run"]) == 0
    assert "accepted: my own" in capsys.readouterr().err


def test_what_cannot_be_uploaded_is_named(hub, run, tmp_path, capsys):
    (run / "student" / "README.md").unlink()
    assert main(["push", str(run), "hub:me/student"]) == 2
    assert "no model card" in capsys.readouterr().err
    for target in ("me/student", "hub:student", "embedded:smollm2", "hub:me/student@main"):
        assert main(["push", str(run), target]) == 2, target
    assert main(["push", str(tmp_path / "absent"), "hub:me/x"]) == 1
    assert hub.requests == 0
