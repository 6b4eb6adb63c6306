"""Every failure gives a message and an exit status, and a traceback only with --debug."""

import errno
import json
import os
import socket
import subprocess
import sys

import pytest

from stillhouse import errors
from stillhouse.cli import main
from stillhouse.cli.failures import explain

RECIPE = (
    "name: first\nteacher: {model: embedded:smollm2}\nprompts: {source: package:mmlu}\nstudent: {model: m}\n"
)


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A valid recipe in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE)
    return "r.yaml"


@pytest.fixture
def failing(monkeypatch):
    """Replaces the pipeline's work by a given function."""

    def install(act):
        monkeypatch.setattr("stillhouse.pipeline.run", lambda *_, **__: act())

    return install


def raises(error):
    def act():
        raise error

    return act


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnu"], 'Unknown command "rnu". Did you mean "run"?'),
        (["run"], "requires an argument"),
        (["run", "r.yaml", "--drry-run"], "Unknown option: --drry-run. Did you mean --dry-run?"),
        (["run", "r.yaml", "extra"], "Unused Tokens"),
        (["run", "r.yaml", "--train.epochs"], "--train.epochs needs a value"),
        (["run", "r.yaml", "--train.epocs", "2"], "unknown key. Did you mean `train.epochs`?"),
        (["run", "none.yaml"], "no such recipe"),
        (["terms", "m", "--purpose", "profit"], "profit"),
        (["eval", "nowhere"], "nowhere is not the directory of a finished run"),
        (["eval", "m", "--teacher", "t"], "--teacher needs --data"),
        (["verify", "nowhere"], "nowhere"),
        (["export", ".", "--to", "gguf"], "contains no model"),
        (["ask", "embedded:smolm2", "Hi"], "there is no embedded model 'smolm2'"),
        (["fetch-embedded", "smolm2"], "there is no embedded model 'smolm2'"),
        (["ask", "api:http://127.0.0.1:9/v1", "Hi"], "names no model"),
        (["ask", "embedded:smollm2", "Hi", "--temperature", "5"], "--temperature must be between 0 and 2"),
    ],
)
def test_wrong_usage_is_2(recipe, capsys, arguments, message):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (errors.TermsError("forbidden", hint="Ask."), 3, "error: forbidden\nhint: Ask.\n"),
        (errors.EmptyCorpusError("nothing left"), 1, "error: nothing left\n"),
        (errors.RecipeError("no such layer"), 2, "error: no such layer\n"),
        (KeyboardInterrupt(), 130, "error: interrupted; run the same command again to resume\n"),
        (MemoryError(), 1, "error: not enough memory for this work\n"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 1 bytes"
            ),
            1,
            "error: not enough memory for this work\n",
        ),
        (OSError(errno.EACCES, "Permission denied", "/x"), 1, "error: no permission: /x\n"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 1, "error: the disk is full\n"),
        (
            ZeroDivisionError("a\nb"),
            1,
            "error: internal error: ZeroDivisionError: a b\nhint: Run again with --debug",
        ),
    ],
)
def test_a_failing_run_says_why(recipe, failing, capsys, error, status, message):
    failing(raises(error))
    assert main(["run", recipe]) == status
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_a_full_disk_is_named(recipe, failing, capsys):
    def fill():
        with open("/dev/full", "w") as file:
            file.write("x")

    failing(fill)
    assert main(["run", recipe]) == 1
    assert "error: the disk is full" in capsys.readouterr().err


def test_torch_running_out_of_memory_is_recognised():
    torch = pytest.importorskip("torch")
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert isinstance(explain(caught.value), errors.OutOfMemoryError)


def test_debug_shows_the_traceback(recipe, failing, capsys):
    failing(raises(ZeroDivisionError()))
    assert main(["run", recipe, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_json_reports_the_failure_on_stdout(recipe, failing, capsys):
    failing(raises(errors.TermsError("forbidden", hint="Ask.")))
    assert main(["run", recipe, "--json"]) == 3
    assert json.loads(capsys.readouterr().out) == {"error": "forbidden", "hint": "Ask.", "status": 3}


@pytest.mark.parametrize("verb", [["verify"], ["trace", "verify"]])
def test_both_verifications_have_the_same_statuses(verb, tmp_path, capsys):
    """2 for a directory that is no run and no bundle; 1 for one that is damaged."""
    file = "manifest.json" if verb == ["verify"] else "evidence.json"
    assert main([*verb, str(tmp_path)]) == 2
    assert f"contains no {file}" in capsys.readouterr().err
    assert main([*verb, str(tmp_path / "nowhere")]) == 2
    (tmp_path / file).write_text("{")
    assert main([*verb, str(tmp_path)]) == 1


def test_of_a_bundle_the_other_verification_is_named(tmp_path, capsys):
    (tmp_path / "evidence.json").write_text("{}")
    assert main(["verify", str(tmp_path)]) == 2
    assert f"still trace verify {tmp_path}" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error():
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from stillhouse.cli import main; sys.exit(main(['terms']))"
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_terminal_that_lacks_a_sign_does_not_stop_the_command():
    code = "import sys; from stillhouse.cli import main; sys.exit(main(['--help']))"
    settings = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, check=True)
    assert b"still COMMAND" in done.stdout


def test_an_interrupted_verb_that_does_not_resume_does_not_say_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("stillhouse.models.list_models", raises_interrupt)
    assert main(["models", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def raises_interrupt(*_):
    raise KeyboardInterrupt


def test_a_port_in_use_is_a_failure(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert main(["serve", "embedded:smollm2", "--port", str(other.getsockname()[1])]) == 1
    assert "cannot listen" in capsys.readouterr().err
    assert main(["serve", "embedded:smollm2", "--port", "70000"]) == 2
