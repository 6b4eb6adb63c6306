"""`still ask` and `still chat`: answers, conversations, interruptions and refusals."""

import json
import os
import pty
import re
import shutil
import signal
import sys
import time
import tty
from pathlib import Path

import pytest
import torch
from chat_api import ChatApi
from conftest import CHATML
from loopback import bound_server, running
from still_command import StillProcess, still
from transformers import AutoModelForCausalLM, AutoTokenizer

from stillhouse.cli import main
from stillhouse.models import cpu_has_bfloat16

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    server = ChatApi()
    runner, bound, address = bound_server(server.app)
    with running(runner, bound):
        server.reference = f"api:{address}/v1#m"
        yield server


def greedy(directory: Path, question: str, tokens: int) -> str:
    """The greedy answer by transformers itself, in the type that the command computes in."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    dtype = torch.bfloat16 if cpu_has_bfloat16() else torch.float32
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    with torch.inference_mode():
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens
        )
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def test_ask_prints_the_models_answer(tiny_teacher, tmp_path, capsys):
    expected = greedy(tiny_teacher, "what is a still?", 10)
    asked = ["ask", str(tiny_teacher), "what is a still?", "--temperature", "0", "--max-tokens", "10"]
    assert main([*asked, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["answer"].strip() == expected.strip()
    assert result["completion_tokens"] <= 10
    # A run's directory names its student.
    shutil.copytree(tiny_teacher, tmp_path / "run" / "student")
    assert main(["ask", str(tmp_path / "run"), *asked[2:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answer"] == result["answer"]


def test_a_seed_repeats_an_answer(tiny_teacher, capsys):
    def answer(*options):
        assert main(["ask", str(tiny_teacher), "hello", "--max-tokens", "12", "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)["answer"]

    assert answer("--seed", "3") == answer("--seed", "3") != answer("--seed", "4")


def test_text_from_stdin_follows_the_question(api, tmp_path):
    (tmp_path / "notes.txt").write_text("the notes\n")
    both = still("ask", api.reference, "summarize:", cwd=tmp_path, stdin=tmp_path / "notes.txt")
    alone = still("ask", api.reference, "--system", "be brief", cwd=tmp_path, stdin=tmp_path / "notes.txt")
    assert both.stdout == "heard summarize:\n\nthe notes\n"
    assert alone.stdout == "heard the notes\n"
    assert api.bodies[1]["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "the notes"},
    ]


@pytest.mark.parametrize("question", ["think", "inline"])
def test_reasoning_goes_to_stderr(api, question, capsys):
    assert main(["ask", api.reference, question]) == 0
    out, err = capsys.readouterr()
    assert out == "An answer.\n"
    assert "Let me think." in err
    assert main(["ask", api.reference, question, "--quiet"]) == 0
    assert capsys.readouterr() == ("An answer.\n", "")


def test_no_control_character_of_a_model_or_server_is_printed(api, capsys):
    assert main(["ask", api.reference, "attack"]) == 0
    assert main(["ask", api.reference, "attack", "--json"]) == 0
    assert main(["ask", api.reference, "refuse"]) == 1
    out, err = capsys.readouterr()
    assert "red" in out and "refuses the key" in err
    assert not CONTROLS.search(out + err)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["ask", "embedded:smollm3", "hi"], 2, "no embedded model"),
        (["ask", "API", "hi", "--temperature", "-1"], 2, "--temperature"),
        (["ask", "API", "hi", "--max-tokens", "0"], 2, "--max-tokens"),
        (["ask", "API", " "], 2, "the question is empty"),
        (["ask", "API", "hi", "--system", "file:absent.txt"], 2, "absent.txt cannot be read"),
        (["chat", "API", "--json"], 2, "no JSON output"),
        (["ask", "API", "break"], 1, "the model failed"),
        (["ask", "api:http://127.0.0.1:9/v1#m", "hi"], 1, "failed"),
    ],
)
def test_failures_have_a_message_and_a_status(api, arguments, status, message, capsys, monkeypatch):
    monkeypatch.setattr("stillhouse.models.backends.retry.FIRST_DELAY_S", 0.01)
    assert main([api.reference if argument == "API" else argument for argument in arguments]) == status
    assert message in capsys.readouterr().err


def test_an_answer_that_was_cut_off_is_reported(api, capsys):
    assert main(["ask", api.reference, "long", "--max-tokens", "3"]) == 0
    assert "cut off at --max-tokens" in capsys.readouterr().err


def test_a_template_that_refuses_a_system_prompt_is_a_clear_error(tiny_teacher, tmp_path, capsys):
    shutil.copytree(tiny_teacher, tmp_path / "model")
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    (tmp_path / "model" / "chat_template.jinja").write_text(refusal + CHATML)
    assert main(["ask", str(tmp_path / "model"), "hi", "--system", "x"]) == 1
    error = capsys.readouterr().err
    assert "no system role" in error and "omit the system prompt" in error


class Terminal:
    """`still chat` on a pseudo-terminal of 60 columns."""

    def __init__(self, *arguments: str) -> None:
        self._own, self._theirs = pty.openpty()
        tty.setraw(self._theirs)  # no echo: what is read is what the command writes
        path = os.ttyname(self._theirs)
        self.process = StillProcess("chat", *arguments, terminal=path, COLUMNS="60", TERM="xterm")
        os.set_blocking(self._own, False)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._own, text.encode())

    def wait_for(self, text: str, timeout: float = 30) -> str:
        """What was shown up to ``text``."""
        end = time.monotonic() + timeout
        while text not in self.shown:
            assert time.monotonic() < end and self.process.poll() is None, self.shown
            try:
                self.shown += os.read(self._own, 65536).decode()
            except BlockingIOError:
                time.sleep(0.01)
        before, _, self.shown = self.shown.partition(text)
        return before

    def close(self) -> int:
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            os.close(self._own)
            os.close(self._theirs)


def test_a_conversation_on_a_terminal(api, tmp_path):
    terminal = Terminal(api.reference, "--system", "be brief", "--seed", "5")
    terminal.wait_for("> ")
    terminal.type("think\n")
    terminal.wait_for("\x1b[2mLet me think.")  # dimmed
    terminal.wait_for("An answer.")
    terminal.wait_for("> ")
    terminal.type("and then?\n")
    terminal.wait_for("heard and then?")
    terminal.wait_for("> ")
    terminal.type("/again\n")
    terminal.wait_for("heard and then?")
    terminal.wait_for("> ")
    terminal.type(f"/save {tmp_path}/kept.jsonl\n")
    terminal.wait_for("saved to")
    terminal.type("/nonsense\n")
    terminal.wait_for("there is no command /nonsense")
    terminal.type("forever\n")
    terminal.wait_for("heard forever")
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait_for("(stopped)")
    terminal.wait_for("> ")
    terminal.type("/clear\n")
    terminal.wait_for("new conversation")
    terminal.type('"""one\n')
    terminal.type('two"""\n')
    terminal.wait_for("heard one")
    terminal.wait_for("> ")
    terminal.type("\x04" if sys.platform == "darwin" else "/exit\n")
    assert terminal.close() == 0

    first, second, again, forever, last = [body["messages"] for body in api.bodies]
    system = {"role": "system", "content": "be brief"}
    assert first == [system, {"role": "user", "content": "think"}]
    assert second == [
        *first,
        {"role": "assistant", "content": "An answer."},
        {"role": "user", "content": "and then?"},
    ]
    assert again == second
    assert [body["seed"] for body in api.bodies[:3]] == [5, 5, 6]
    assert forever[-1] == {"role": "user", "content": "forever"}
    assert last == [system, {"role": "user", "content": "one\ntwo"}]
    assert api.cancelled == 1  # the server's slot is free again
    saved = json.loads((tmp_path / "kept.jsonl").read_text())["messages"]
    assert saved[2] == {"role": "assistant", "content": "An answer.", "reasoning_content": "Let me think.\n"}
    assert saved[-1] == {"role": "assistant", "content": "heard and then?"}


def test_lines_of_a_pipe_are_turns_of_one_conversation(tiny_teacher, tmp_path):
    (tmp_path / "turns.txt").write_text("hello\n\nand now?\n")
    done = still(
        "chat", tiny_teacher, "--max-tokens", "8", "--seed", "1", cwd=tmp_path, stdin=tmp_path / "turns.txt"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") >= 2
    assert "> " not in done.stdout
    # A conversation that no longer fits ends a script with an error.
    (tmp_path / "turns.txt").write_text("word " * 600 + "\n")
    full = still("chat", tiny_teacher, cwd=tmp_path, stdin=tmp_path / "turns.txt")
    assert full.returncode == 1
    assert "the model's context 512" in full.stderr
