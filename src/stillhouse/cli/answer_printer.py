"""Prints an answer while it streams: without control characters, wrapped at words, its reasoning dimmed.

A model's text is untrusted: an escape sequence in it could rename the window, hide text or write to the
clipboard. Control characters are therefore shown as pictures and never sent to a terminal.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from typing import TextIO

from stillhouse.console import console, printable

DIM, PLAIN = "\x1b[2m", "\x1b[0m"
NARROWEST = 20
"""Columns; a narrower terminal wraps by itself."""
_UNWRAPPED = ("|", "    ", "\t")
"""Beginnings of lines that keep their layout: tables and indented code."""
_FENCES = ("```", "~~~")


class WordWrap:
    """Wraps text that arrives in pieces at words, to ``width`` columns; code and tables keep their lines.

    The word in progress is held back until it ends or fills a line.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._column, self._word, self._space = 0, "", ""
        self._line = ""
        """The beginning of the source line, which says whether it is code or part of a table."""
        self._fence = ""

    def add(self, text: str) -> str:
        """What can be shown after ``text``."""
        shown = []
        for character in text:
            if character == "\n":
                shown.append(self._end_word() + "\n")
                self._end_line()
            elif character in " \t" and not self._keeps_layout():
                shown.append(self._end_word())
                self._space += character
            else:
                self._word += character
            if character != "\n":
                self._line = (self._line + character)[:80]
            if self._word and (self._keeps_layout() or self._cells(self._word) >= self.width):
                shown.append(self._end_word())
        return "".join(shown)

    def end(self) -> str:
        """What was held back."""
        return self._end_word()

    def _keeps_layout(self) -> bool:
        return bool(self._fence) or self._line.startswith((*_UNWRAPPED, *_FENCES))

    def _end_line(self) -> None:
        mark = self._line.strip()[:3]
        if mark in _FENCES and self._fence in ("", mark):
            self._fence = "" if self._fence else mark
        self._column, self._space, self._line = 0, "", ""

    def _end_word(self) -> str:
        word, space = self._word, self._space
        self._word = self._space = ""
        if not word:
            self._space = space
            return ""
        cells = self._cells(word)
        if self._column and not self._keeps_layout() and self._column + len(space) + cells > self.width:
            self._column = cells
            return "\n" + word
        self._column += len(space) + cells
        return space + word

    @staticmethod
    def _cells(text: str) -> int:
        from rich.cells import cell_len

        return cell_len(text)


class AnswerPrinter:
    """Prints the pieces of one answer: its text to stdout, its reasoning to stderr."""

    def __init__(self) -> None:
        self._streams = {"content": _Stream(sys.stdout), "reasoning": _Stream(sys.stderr, dim=True)}
        self._kind: str | None = None

    def add(self, kind: str, text: str) -> None:
        """Prints the next piece; `--quiet` hides reasoning."""
        if kind == "reasoning" and console.quiet:
            return
        if self._kind not in (None, kind):
            self._streams[str(self._kind)].end()
            if sys.stderr.isatty():
                print(file=sys.stderr, flush=True)
        self._kind = kind
        self._streams[kind].write(text)

    def end(self) -> None:
        """Ends the last line, also after an interruption."""
        if self._kind is not None:
            self._streams[self._kind].end()


class _Stream:
    """stdout or stderr, as a terminal or a pipe."""

    def __init__(self, file: TextIO, *, dim: bool = False) -> None:
        self._file, self._wrote = file, False
        self._held = ""  # a carriage return, until it is known whether a newline follows
        terminal = file.isatty()
        width = shutil.get_terminal_size().columns
        wrap = WordWrap(width) if terminal and width >= NARROWEST else None
        self._wrap: Callable[[str], str] = wrap.add if wrap else str
        self._rest: Callable[[], str] = wrap.end if wrap else str
        coloured = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._dim = dim and coloured

    def write(self, text: str) -> None:
        self._wrote = self._wrote or bool(text)
        text, self._held = self._held + text, ""
        if text.endswith("\r"):
            text, self._held = text[:-1], "\r"
        self._show(self._wrap(printable(text)))

    def end(self) -> None:
        if self._wrote:
            self._show(self._rest())
            print(file=self._file, flush=True)
            self._wrote = False

    def _show(self, text: str) -> None:
        if text:
            self._file.write(f"{DIM}{text}{PLAIN}" if self._dim else text)
            self._file.flush()
