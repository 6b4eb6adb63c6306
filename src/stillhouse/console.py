"""Output of the command: data goes to stdout; messages, hints and progress go to stderr.

Tables fit the terminal (80 columns in a pipe) and prose wraps at its width; neither breaks
a word, a number or a number and its unit. In a pipe a paragraph of prose is one line, so
that it can be searched. Progress is a bar on a terminal (drawn by rich, which is imported
only then) and one line every few seconds in a pipe. ``COLUMNS`` and ``NO_COLOR`` are
respected.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TextIO

from stillhouse.pages.numbers import format_dollars, format_duration

WIDTH = 80
"""Columns of a table in a pipe."""
FIRST_LINE_AFTER_S = 2.0
LINE_EVERY_S = 5.0


class Progress(Protocol):
    """Progress of one piece of work."""

    def advance(self, n: int = 1, **extras: Any) -> None:
        """Adds ``n`` finished units.

        Args:
            n: units finished since the last call.
            extras: values to show beside the count until the next call, e.g. ``loss=2.31``; ``spent`` is
                US dollars and is shown as ``$0.12 spent``.
        """
        ...


class Console:
    """Writes every line of output; `console` below is the one instance."""

    def __init__(self) -> None:
        self.json = False
        """JSON output: `data` prints and `table` does not."""
        self.quiet = False
        """Suppresses `info`, `hint` and progress; warnings and errors are still printed."""

    def info(self, text: str) -> None:
        """Prints a message about what happened."""
        if not self.quiet:
            _message(text)

    def hint(self, text: str) -> None:
        """Prints what the user can do next."""
        if not self.quiet:
            _message(text, "hint:", "36")

    def warn(self, text: str) -> None:
        """Prints a warning: the work continues, but the result may not be what the user wants."""
        _message(text, "warning:", "33")

    def error(self, text: str) -> None:
        """Prints an error: the work stops."""
        _message(text, "error:", "1;31")

    def text(self, text: str) -> None:
        """Prints prose to stdout, or nothing if `json` is set (see `data`)."""
        if not self.json:
            print(wrap(printable(text), _columns(sys.stdout)))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Prints a table to stdout, or nothing if `json` is set (see `data`)."""
        if self.json:
            return
        title, columns = printable(title), [printable(column) for column in columns]
        rows = [[printable(cell) for cell in row] for row in rows]
        print(plain_table(title, columns, rows, _columns(sys.stdout) or WIDTH))

    def data(self, value: Any) -> None:
        """Prints ``value`` to stdout as JSON if `json` is set; otherwise nothing."""
        if self.json:
            # json escapes controls below U+0020 only; a terminal also obeys those above U+007E.
            print(_UPPER_CONTROLS.sub(_escape, json.dumps(value, indent=2, ensure_ascii=False)))

    @contextlib.contextmanager
    def progress(self, label: str, total: int | None, unit: str = "", *, done: int = 0) -> Iterator[Progress]:
        """Shows progress on stderr while the block runs.

        Args:
            label: name of the work, e.g. ``collect``.
            total: number of units, or None if unknown; then there is no percentage and no ETA.
            unit: name of a unit, e.g. ``tokens``.
            done: units of ``total`` finished before this block (a resumed run); the rate excludes them.
        """
        if self.quiet:
            yield _SilentProgress()
        elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            with _rich_progress(label, total, unit, done) as bar:
                yield bar
        else:
            lines = _LineProgress(label, total, unit, done)
            yield lines
            lines.finish()


console = Console()


_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_UPPER_CONTROLS = re.compile(r"[\x7f-\x9f]")


def printable(text: str) -> str:
    """``text`` for a terminal: control characters but newline and tab become pictures (`␛`)."""
    return _CONTROLS.sub(_picture, text.replace("\r\n", "\n"))


def _picture(control: re.Match[str]) -> str:
    code = ord(control[0])
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


def _escape(control: re.Match[str]) -> str:
    return f"\\u{ord(control[0]):04x}"


# Plain text

_GLUE = "\ue000"
"""Replaces a space at which a line must not end; a code point that no text uses."""
_UNITS = r"(?:[kMGT]?B|[kMBT]|s|ms|min|h|%|points?|nats?|tokens?|documents?)(?!\w)"
_INTERVAL = re.compile(r"\[[-+−∞\d.,%–e to]+\]")
_NUMBER_AND_UNIT = re.compile(rf"(?<=\d) (?={_UNITS})|(?<=\d min) (?=\d)|(?<=\d h) (?=\d)")


def wrap(text: str, width: int | None) -> str:
    """``text`` with lines of at most ``width`` columns; None leaves each paragraph on its line.

    Lines end between words only. A word longer than the width (a path) stays in one piece, and a number stays
    with its unit. The continuation of an indented line is indented too.
    """
    if width is None:
        return text
    lines = []
    for line in text.split("\n"):
        indent = line[: len(line) - len(line.lstrip())]
        lines += _wrap(line.strip(), width, indent)
    return "\n".join(lines)


def plain_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], width: int = WIDTH) -> str:
    """An aligned table that wraps long cells to fit ``width`` columns.

    Columns of numbers are right-aligned. No cell becomes narrower than its longest word. A table that cannot
    fit that way is printed row by row, one ``column  cell`` line below the other. A word longer than the
    width (a path) stays in one piece.
    """
    grid = [list(columns), *[list(row) for row in rows]]
    widths = _fit([[row[i] for row in grid] for i in range(len(columns))], width - 2 * (len(columns) - 1))
    right = [all(_is_number(row[i]) for row in rows) and bool(rows) for i in range(len(columns))]
    lines = _wrap(title, width) if title else []
    if sum(widths) + 2 * (len(columns) - 1) > width and len(columns) > 1 and rows:
        return "\n".join([*lines, *_records(columns, rows, width)])
    for number, row in enumerate(grid):
        lines += _table_row(row, widths, right)
        if number == 0:
            lines.append("  ".join("-" * w for w in widths))
    return "\n".join(lines)


def _records(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """Each row as lines of its own, with the names of the columns on the left."""
    names = max(map(len, columns))
    for number, row in enumerate(rows):
        if number:
            yield ""
        for column, cell in zip(columns, row, strict=True):
            for k, line in enumerate(_wrap(cell, width - names - 2)):
                yield f"{column if k == 0 else '':<{names}}  {line}".rstrip()


def _fit(cells_by_column: Sequence[Sequence[str]], available: int) -> list[int]:
    """Column widths: starts from the full widths and narrows the widest column until the table fits."""
    widths = [max(map(len, "\n".join(cells).split("\n"))) for cells in cells_by_column]
    longest_words = [max(map(len, _glued(" ".join(cells)).split()), default=0) for cells in cells_by_column]
    while sum(widths) > available:
        shrinkable = [i for i in range(len(widths)) if widths[i] > longest_words[i]]
        if not shrinkable:
            break
        widest = max(shrinkable, key=lambda i: widths[i])
        widths[widest] -= 1
    return widths


def _table_row(row: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> list[str]:
    cells = [_wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
    lines = []
    for k in range(max(map(len, cells), default=1)):
        texts = [cell[k] if k < len(cell) else "" for cell in cells]
        aligned = [t.rjust(w) if r else t.ljust(w) for t, w, r in zip(texts, widths, right, strict=True)]
        lines.append("  ".join(aligned).rstrip())
    return lines


def _wrap(cell: str, width: int, indent: str = "") -> list[str]:
    wrapper = textwrap.TextWrapper(
        max(width, 1),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    lines = [line for paragraph in cell.split("\n") for line in wrapper.wrap(_glued(paragraph)) or [""]]
    return [line.replace(_GLUE, " ") for line in lines]


def _glued(text: str) -> str:
    """``text`` in which no line can end inside an interval or between a number and its unit."""
    text = _INTERVAL.sub(lambda match: match[0].replace(" ", _GLUE), text)
    return _NUMBER_AND_UNIT.sub(_GLUE, text)


def _is_number(cell: str) -> bool:
    """Whether a cell is a number (``1,024``, ``$0.12``, ``0.7 [0.6–0.8]``, ``2 min 05 s``) or empty."""
    text = cell.strip()
    return text in ("", "–", "-", "∞") or bool(
        re.match(r"[$±+−<-]?[.\d]", text) and not re.search(r"[A-Za-z]{4}", text)
    )


def _rate(units_per_s: float) -> str:
    return f"{units_per_s:,.0f}" if units_per_s >= 10 else f"{units_per_s:.2g}"


def _extra(name: str, value: Any) -> str:
    if name == "spent":
        return f"{format_dollars(value)} spent"
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"


class _SilentProgress:
    def advance(self, n: int = 1, **extras: Any) -> None:
        pass


class _LineProgress:
    """Progress as plain lines: one after 2 s, then one every 5 s, and a last one for work longer than 2 s."""

    def __init__(self, label: str, total: int | None, unit: str, done: int) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.start_done = self.done = done
        self.extras: dict[str, Any] = {}
        self.started = time.monotonic()
        self.last_line: float | None = None

    def advance(self, n: int = 1, **extras: Any) -> None:
        self.done += n
        self.extras.update(extras)
        now = time.monotonic()
        due = self.started + FIRST_LINE_AFTER_S if self.last_line is None else self.last_line + LINE_EVERY_S
        if now >= due and self.done != self.total:
            self.last_line = now
            _stderr(self.line(now - self.started))

    def line(self, elapsed_s: float) -> str:
        """``train 30% (300/1,000 tokens), 150 tokens/s, 5 s left, loss 2.31``."""
        rate = (self.done - self.start_done) / elapsed_s if elapsed_s > 0 else 0.0
        unit = f" {self.unit}" if self.unit else ""
        if self.total is None:
            texts = [f"{self.label} {self.done:,}{unit}" if self.done else self.label]
        else:
            share = self.done / self.total if self.total else 1.0
            texts = [f"{self.label} {share:.0%} ({self.done:,}/{self.total:,}{unit})"]
        if rate > 0:
            texts.append(f"{_rate(rate)}{unit}/s")
        if self.total is not None and rate > 0 and self.done < self.total:
            texts.append(f"{format_duration((self.total - self.done) / rate)} left")
        return ", ".join(texts + [_extra(*item) for item in self.extras.items()])

    def finish(self) -> None:
        elapsed = time.monotonic() - self.started
        if elapsed >= FIRST_LINE_AFTER_S:
            _stderr(f"{self.line(elapsed)}, took {format_duration(elapsed)}")


def _stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _message(text: str, label: str = "", colour: str = "") -> None:
    """Writes a message to stderr, wrapped at the width of the terminal."""
    text = printable(text)
    wrapped = wrap(f"{label} {text}" if label else text, _columns(sys.stderr))
    _stderr(wrapped.replace(label, _style(label, colour), 1) if label else wrapped)


def _columns(stream: TextIO) -> int | None:
    """``COLUMNS`` if it is set, else the width of the terminal behind ``stream``; None in a pipe."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and int(columns) > 0:
        return int(columns)
    try:
        return (os.get_terminal_size(stream.fileno()).columns or WIDTH) if stream.isatty() else None
    except (OSError, ValueError):  # no descriptor, or not a terminal after all
        return None


def _style(text: str, code: str) -> str:
    coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\x1b[{code}m{text}\x1b[0m" if coloured else text


# Progress bars with rich, which is imported only here


@contextlib.contextmanager
def _rich_progress(label: str, total: int | None, unit: str, done: int) -> Iterator[Progress]:
    from rich import progress as bars
    from rich.console import Console as RichConsole
    from rich.table import Column

    rich_console = RichConsole(file=sys.stderr)
    bar_width = 20 if rich_console.width >= WIDTH else 6
    columns = [
        bars.TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        bars.BarColumn(bar_width=bar_width),
        bars.TaskProgressColumn(table_column=Column(no_wrap=True, min_width=4)),
        bars.TimeRemainingColumn(
            compact=True, elapsed_when_finished=True, table_column=Column(no_wrap=True, min_width=5)
        ),
        bars.TextColumn("{task.fields[extras]}", markup=False),
    ]
    # what is left of the line for rate and extras; hours make the time three columns wider
    room = rich_console.width - len(label) - bar_width - len(" 100% 00:00  0:") - 1
    # rich redirects only stderr, so that messages appear above the bar: stdout carries data.
    with bars.Progress(*columns, console=rich_console, redirect_stdout=False, transient=False) as shown:
        task = shown.add_task(label, total=total, completed=done, extras="")
        yield _BarProgress(shown, task, unit, room)


class _BarProgress:
    def __init__(self, bars: Any, task: Any, unit: str, room: int) -> None:
        self.bars, self.task, self.unit, self.room = bars, task, unit, room
        self.extras: dict[str, Any] = {}

    def advance(self, n: int = 1, **extras: Any) -> None:
        self.extras.update(extras)
        speed = self.bars.tasks[self.task].speed
        unit = f" {self.unit}" if self.unit else ""
        texts = [_extra(*item) for item in self.extras.items()]
        if speed:
            texts.append(f"{_rate(speed)}{unit}/s")
        while texts and len(", ".join(texts)) > self.room:
            texts.pop()  # whole, because rich would cut a number
        self.bars.update(self.task, advance=n, extras=", ".join(texts))
