"""Help, reference pages and completion: complete, correct and fast to import."""

import collections
import itertools
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from stillhouse import __version__, errors
from stillhouse.cli import app, main
from stillhouse.cli.app import EPILOGUE, VERBS
from stillhouse.cli.exit_status import EXIT_STATUSES
from stillhouse.cli.generate_docs import PAGES
from stillhouse.cli.help_text import unwrap
from stillhouse.cli.overrides import gather_overrides
from stillhouse.cli.trace import SUBCOMMANDS

HEAVY = ["torch", "transformers", "pyarrow", "matplotlib", "numpy", "openai", "pydantic"]
ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("verb", ["", *VERBS, *(f"trace {part}" for part in SUBCOMMANDS)])
def test_help_imports_nothing_heavy(verb):
    code = (
        "import sys; from stillhouse.cli import main; "
        f"status = main({[*verb.split(), '--help']}); "
        f"print(status, [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 80


EVERY = VERBS | {f"trace {part}": function for part, (function, _) in SUBCOMMANDS.items()}


@pytest.mark.parametrize("verb", EVERY)
def test_every_verb_shows_examples_that_can_be_pasted(verb, capsys):
    assert main([*verb.split(), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    examples = [line.strip() for line in lines if line.startswith("  still ")]
    assert [line.strip() for line in lines[-len(examples) :]] == examples, "an example is broken over lines"
    assert len(examples) >= 2
    for example in examples:
        command, _, _ = app.parse_args(
            gather_overrides(shlex.split(example)[1:]), exit_on_error=False, print_error=False
        )
        assert command is EVERY[verb]


@pytest.mark.parametrize("verb", EVERY)
@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_help_wraps_at_the_width_of_the_terminal(verb, columns, monkeypatch, capsys):
    """Within a paragraph, a line ends only where the next word does not fit."""
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(app, "_console", Console())  # otherwise cyclopts keeps the first width of the process
    assert main([*verb.split(), "--help"]) == 0
    description = capsys.readouterr().out.partition("╭")[0].split("\n\n")[1:]
    for paragraph in description:
        lines = paragraph.strip().split("\n")
        for line, following in itertools.pairwise(lines):
            assert len(line.rstrip()) + 1 + len(following.split()[0]) > int(columns)


def test_unwrapping_keeps_paragraphs_parameters_and_their_order():
    text = """Does a thing.

    A paragraph
    of two lines.

    Another.

    Parameters
    ----------
    first
        One
        two three
        four.
    second
        Five.
    """
    assert unwrap(text) == (
        "Does a thing.\n\nA paragraph of two lines.\n\nAnother.\n\nParameters\n----------\n"
        "first\n    One two three four.\nsecond\n    Five."
    )


@pytest.mark.parametrize("file", PAGES)
def test_the_reference_pages_are_current(file):
    assert (ROOT / "docs" / file).read_text("utf-8") == PAGES[file](), "run `make docs`"


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def install_completion(home: Path, *options: str, answer: str | None = None) -> tuple[int, str]:
    """Status and output of `--install-completion`; ``answer`` is typed on a terminal."""
    settings = {**os.environ, "HOME": str(home), "SHELL": "/bin/bash"}
    code = (
        f"import sys; from stillhouse.cli import main; sys.exit(main({['--install-completion', *options]}))"
    )
    if answer is None:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=settings, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        return done.returncode, done.stdout + done.stderr
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=settings,
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    os.write(master, f"{answer}\n".encode())
    output = process.communicate(timeout=60)[0].decode()
    os.close(master)
    os.close(slave)
    return process.returncode, output


def files_in(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())


SCRIPT = ".local/share/bash-completion/completions/still"


def test_completion_says_what_it_writes_and_asks(tmp_path):
    status, output = install_completion(tmp_path, "--shell", "bash", answer="n")
    assert (status, files_in(tmp_path)) == (0, [])
    assert f"writes {tmp_path / SCRIPT}" in output
    assert f"adds two lines to {tmp_path / '.bashrc'}" in output
    assert "Continue? [y/N]" in output
    status, _ = install_completion(tmp_path, "--shell", "bash", "--quiet", answer="y")
    assert (status, files_in(tmp_path)) == (0, [".bashrc", SCRIPT])
    script = (tmp_path / SCRIPT).read_text()
    assert all(verb in script for verb in VERBS)
    assert SCRIPT in (tmp_path / ".bashrc").read_text()


def test_completion_without_a_terminal_needs_yes(tmp_path):
    status, output = install_completion(tmp_path, "--shell", "bash")
    assert (status, files_in(tmp_path)) == (2, [])
    assert "no terminal to ask on" in output and "--yes" in output
    assert install_completion(tmp_path, "--shell", "fish", "--yes")[0] == 0
    assert files_in(tmp_path) == [".config/fish/completions/still.fish"]


WORDS_OF_HELP = re.compile(r"[^\s│╭╮╰╯─]+")


@pytest.mark.parametrize("verb", ["", *EVERY])
def test_help_breaks_no_word_on_a_narrow_terminal(verb, monkeypatch, capsys):
    words = {}
    for columns in ("60", "80", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setattr(app, "_console", Console())
        assert main([*verb.split(), "--help"]) == 0
        page = capsys.readouterr().out
        words[columns] = collections.Counter(WORDS_OF_HELP.findall(page))
        described = page.partition("Examples:")[0]
        assert max(map(len, map(str.rstrip, described.splitlines()))) <= int(columns)
    assert words["60"] == words["80"] == words["200"]


def test_every_exit_status_is_in_the_table():
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    raised = {kind.exit_status for kind in classes if issubclass(kind, errors.StillhouseError)}
    assert raised <= EXIT_STATUSES.keys() == {0, 1, 2, 3, 130, 141}
    page = PAGES["cli.md"]()
    for status, (phrase, meaning) in EXIT_STATUSES.items():
        assert f"{status} {phrase}" in EPILOGUE
        assert f"| {status} | {phrase} | {meaning} |" in page
