"""Answers on a terminal: wrapped at words, without control characters, the same however they arrive."""

import itertools
import re
import unicodedata

import pytest
from hypothesis import given, strategies as st
from rich.cells import cell_len

from stillhouse.cli.answer_printer import WordWrap
from stillhouse.console import printable

PROSE = st.text(alphabet=st.sampled_from("ab cdefg \n日é"), max_size=200)


def wrapped(text: str, width: int, cuts=()) -> str:
    wrap = WordWrap(width)
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(bounds)]
    return "".join(map(wrap.add, pieces)) + wrap.end()


@given(PROSE, st.lists(st.integers(0, 200)), st.integers(20, 90))
def test_wrapping_does_not_depend_on_how_the_text_arrives(text, cuts, width):
    assert wrapped(text, width, cuts) == wrapped(text, width)


@given(PROSE, st.integers(20, 90))
def test_wrapping_keeps_every_word_and_the_width(text, width):
    lines = wrapped(text, width)
    assert lines.split() == text.split()
    for line in lines.split("\n"):
        keeps_layout = line.startswith("    ")
        assert cell_len(line.rstrip()) <= width or keeps_layout or len(line.split()) == 1
    # A line is broken only where its next word does not fit.
    assert len(lines.split("\n")) >= len(text.split("\n"))


def test_code_and_tables_keep_their_lines():
    code = "word " * 10
    text = f"```python\n{code}\n```\n{code}\n| {code}|\n    {code}\n"
    lines = wrapped(text, 20).split("\n")
    assert code.rstrip() in [line.rstrip() for line in lines]
    assert f"| {code}|" in lines
    assert f"    {code}".rstrip() in [line.rstrip() for line in lines]
    assert "word word word word" in lines  # only the paragraph is wrapped


@given(st.text(st.characters(max_codepoint=0x2FF), max_size=60))
def test_no_control_character_reaches_a_terminal(text):
    shown = printable(text)
    controls = [c for c in shown if unicodedata.category(c) == "Cc" and c not in "\n\t"]
    assert controls == []
    assert len(shown) == len(text.replace("\r\n", "\n"))


@pytest.mark.parametrize("attack", ["\x1b]0;owned\x07", "\x9b2J", "a\rb", "\x1b[8mhidden", "\x08\x7f"])
def test_escape_sequences_become_pictures(attack):
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", printable(attack))
