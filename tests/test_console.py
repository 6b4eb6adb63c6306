import json
import os
import pty
import re
import subprocess
import sys

import pytest
from hypothesis import given, strategies as st

from stillhouse import console as console_module
from stillhouse.console import Console, _LineProgress, plain_table, wrap


def run_python(code: str, *, terminal: bool, **environment: str) -> str:
    """The output of ``code``, stdout and stderr together, in a pipe or on an 80-column terminal."""
    settings = {**os.environ, "COLUMNS": "80", "TERM": "xterm", **environment}
    if not terminal:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=settings, check=True
        )
        return done.stdout + done.stderr
    master, slave = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=slave, stderr=slave, env=settings)
    os.close(slave)
    output = b""
    try:
        while chunk := os.read(master, 65536):
            output += chunk
    except OSError:  # Linux ends a closed terminal with EIO
        pass
    os.close(master)
    assert process.wait() == 0
    return output.decode()


PROGRAM = """
import sys, time
from stillhouse.console import console
console.table("Title", ["model", "KL"], [["teacher", "0.00"], ["student", "0.12"]])
with console.progress("train", 100, "tokens") as progress:
    for _ in range(4):
        time.sleep(0.01)
        progress.advance(25, loss=2.0, spent=0.125)
    console.warn("careful")
print("rich" in sys.modules, "torch" in sys.modules)
"""


class TestStreams:
    def test_data_goes_to_stdout_and_everything_else_to_stderr(self, capsys):
        console = Console()
        console.info("one")
        console.hint("two")
        console.warn("three")
        console.error("four")
        console.table("", ["a"], [["five"]])
        captured = capsys.readouterr()
        assert captured.err == "one\nhint: two\nwarning: three\nerror: four\n"
        assert captured.out == "a\n----\nfive\n"

    def test_json_replaces_tables(self, capsys):
        console = Console()
        console.data({"ignored": True})
        console.json = True
        console.table("", ["a"], [["b"]])
        console.data({"kl": 0.5, "name": "Brühl"})
        assert json.loads(capsys.readouterr().out) == {"kl": 0.5, "name": "Brühl"}

    def test_quiet_leaves_warnings_and_errors(self, capsys):
        console = Console()
        console.quiet = True
        console.info("one")
        console.hint("two")
        console.warn("three")
        console.error("four")
        with console.progress("train", 10) as progress:
            progress.advance(10)
        assert capsys.readouterr().err == "warning: three\nerror: four\n"

    def test_rich_is_imported_on_a_terminal_only(self):
        assert "False False" in run_python(PROGRAM, terminal=False)
        assert "True False" in run_python(PROGRAM, terminal=True)

    def test_a_terminal_shows_a_bar_a_table_and_messages(self):
        text = run_python(PROGRAM, terminal=True)
        assert "100%" in text
        assert "loss 2" in text
        assert "$0.12 spent" in text
        assert "careful" in text
        assert "student" in text

    def test_no_color_is_respected(self):
        code = "from stillhouse.console import console; console.error('x'); console.table('', ['a'], [['b']])"
        colour = re.compile(r"\x1b\[[0-9;]*[1-9]m")
        assert colour.search(run_python(code, terminal=True))
        assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", run_python(code, terminal=True, NO_COLOR="1"))


class TestLineProgress:
    @pytest.fixture
    def clock(self, monkeypatch):
        """A clock that advances only when a test sets it."""
        now = [100.0]
        monkeypatch.setattr(console_module.time, "monotonic", lambda: now[0])
        return now

    def test_short_work_prints_nothing(self, clock, capsys):
        with Console().progress("collect", 10) as progress:
            for _ in range(10):
                clock[0] += 0.1
                progress.advance()
        assert capsys.readouterr().err == ""

    def test_long_work_prints_a_line_every_five_seconds(self, clock, capsys):
        with Console().progress("collect", 100, "prompts") as progress:
            for _ in range(20):
                clock[0] += 1.0
                progress.advance(5, spent=0.123)
        lines = capsys.readouterr().err.splitlines()
        assert lines == [
            "collect 10% (10/100 prompts), 5 prompts/s, 18 s left, $0.12 spent",
            "collect 35% (35/100 prompts), 5 prompts/s, 13 s left, $0.12 spent",
            "collect 60% (60/100 prompts), 5 prompts/s, 8 s left, $0.12 spent",
            "collect 85% (85/100 prompts), 5 prompts/s, 3 s left, $0.12 spent",
            "collect 100% (100/100 prompts), 5 prompts/s, $0.12 spent, took 20 s",
        ]

    def test_an_unknown_total_has_no_percentage(self, clock, capsys):
        with Console().progress("read", None, "rows") as progress:
            clock[0] += 4.0
            progress.advance(1000, loss=2.34567)
        assert capsys.readouterr().err.splitlines()[0] == "read 1,000 rows, 250 rows/s, loss 2.346"

    def test_what_was_done_before_does_not_count_in_the_rate(self, clock, capsys):
        with Console().progress("train", 1000, done=900) as progress:
            clock[0] += 10.0
            progress.advance(50)
        assert capsys.readouterr().err.splitlines()[0] == "train 95% (950/1,000), 5/s, 10 s left"


class TestPlainTable:
    def test_numbers_are_aligned_right_and_words_left(self):
        table = plain_table(
            "T", ["model", "size", "note"], [["a", "9 MB", "5 documents"], ["bcd", "10 MB", "x"]]
        )
        assert table.splitlines() == [
            "T",
            "model   size  note",
            "-----  -----  -----------",
            "a       9 MB  5 documents",
            "bcd    10 MB  x",
        ]

    @given(st.lists(st.lists(st.text("abc de", max_size=60), min_size=3, max_size=3), min_size=1, max_size=5))
    def test_it_fits_80_columns_and_loses_no_word(self, rows):
        table = plain_table("", ["first", "second", "third"], rows)
        words = [word for row in rows for cell in row for word in cell.split()]
        longest = max((len(w) for w in words), default=0)
        assert sorted(table.split("\n", 2)[2].split()) == sorted(words)
        if 3 * longest + 4 <= 80:
            assert max(map(len, table.splitlines())) <= 80

    def test_a_long_path_stays_in_one_piece(self):
        path = "/a" * 50
        assert path in plain_table("", ["path", "n"], [[path, "1"]])

    def test_an_empty_table_has_its_head(self):
        assert plain_table("", ["a", "b"], []) == "a  b\n-  -"


def test_progress_of_an_unknown_total_starts_without_a_count():
    assert _LineProgress("loading x", None, "", 0).line(3.0) == "loading x"


WIDE = """
import fcntl, struct, sys, termios, time
from stillhouse.console import console
with console.progress("train", 123456, "tokens") as progress:
    for _ in range(4):
        time.sleep(0.05)
        progress.advance(30000, loss=2.345678, spent=0.1234)
console.warn("a sentence of many words that does not fit into sixty columns and ends with 98.6 MB of text")
console.text("The difference is 0.123 nats per token with an interval of [-0.159, -0.117] over all texts.")
console.table("", ["model", "value"], 2 * [["a student with a long name", "0.712 [0.690–0.734]"]])
"""


def words_on_a_terminal(columns: int) -> tuple[list[str], list[str]]:
    """What a terminal of this width shows: its lines, and the words of all but the progress bar."""
    text = run_python(WIDE, terminal=True, COLUMNS=str(columns))
    lines = [
        line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)) if line.strip()
    ]
    return lines, [word for line in lines if "train" not in line for word in line.split()]


@pytest.mark.parametrize("columns", [60, 80])
def test_a_terminal_of_any_width_breaks_no_word_and_no_number(columns):
    lines, words = words_on_a_terminal(columns)
    assert max(map(len, lines)) <= columns
    assert not any("…" in line for line in lines)
    assert any("98.6 MB" in line for line in lines)
    assert any("[-0.159, -0.117]" in line for line in lines)
    bars = [line for line in lines if "train" in line]
    assert any(re.search(r"\b100%|\b97%", line) for line in bars)
    for line in bars:  # a part of the line is shown whole or not at all
        assert re.fullmatch(
            r"train +[━╸╺ ]+ +\d+% +[\d:-]+ *((, )?(\d+(,\d{3})* tokens/s|loss 2\.346|\$0\.12 spent))* *",
            line,
        )
    dashes = set("-")
    assert [w for w in words if set(w) != dashes] == [
        w for w in words_on_a_terminal(200)[1] if set(w) != dashes
    ]


def test_a_table_too_narrow_for_its_words_is_printed_row_by_row():
    table = plain_table("T", ["name", "a long heading"], [["one", "12345678901234567890"], ["two", "2"]], 25)
    assert table.splitlines() == [
        "T",
        "name            one",
        "a long heading  12345678901234567890",
        "",
        "name            two",
        "a long heading  2",
    ]


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("a file of 98.6 MB is here", 14, ["a file of", "98.6 MB is", "here"]),
        ("it took 2 min 05 s here", 12, ["it took", "2 min 05 s", "here"]),
        ("KL 0.1 [0.05 to 0.15] it is", 20, ["KL 0.1", "[0.05 to 0.15] it is"]),
        ("  indented text goes on", 14, ["  indented", "  text goes on"]),
        ("/a/very/long/path/stays whole", 10, ["/a/very/long/path/stays", "whole"]),
    ],
)
def test_prose_wraps_between_words_only(text, width, lines):
    assert wrap(text, width).split("\n") == lines
    assert wrap(text, None) == text
