"""Help, reference pages and completion: complete, correct and fast to import."""

import itertools
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from stillhouse import __version__
from stillhouse.cli import app, main
from stillhouse.cli.app import VERBS
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


def test_completion_is_installed_where_the_shell_looks(tmp_path):
    settings = {**os.environ, "HOME": str(tmp_path), "SHELL": "/bin/bash"}
    settings.pop("XDG_DATA_HOME", None)
    code = "import sys; from stillhouse.cli import main; sys.exit(main(['--install-completion']))"
    subprocess.run([sys.executable, "-c", code], env=settings, check=True, capture_output=True)
    script = tmp_path / ".local/share/bash-completion/completions/still"
    assert all(verb in script.read_text() for verb in VERBS)
