"""Help texts that wrap at the width of the terminal, between words only."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

_PARAMETERS = "\nParameters\n----------\n"
_DESCRIPTION_BREAK = re.compile(r"(?m)^( {4}\S.*)\n {4}(?=\S)")


def unwrap(docstring: str) -> str:
    """A NumPy-style docstring in which each paragraph and each parameter's description is one line.

    cyclopts keeps the line breaks of the source; on a narrow terminal each source line would wrap separately.
    """
    summary, heading, parameters = inspect.cleandoc(docstring).partition(_PARAMETERS)
    summary = re.sub(r"(?<=\S)\n(?=\S)", " ", summary)
    while (joined := _DESCRIPTION_BREAK.sub(r"\1 ", parameters)) != parameters:
        parameters = joined
    return summary + heading + parameters


class WholeNames:
    """Formats help pages as cyclopts does, with a first column that is never narrower than a name in it.

    cyclopts gives it 35% of the width, which breaks `--watermark-by-account` at 60 columns.
    """

    def __call__(self, console: Any, options: Any, panel: Any) -> None:
        self._default()(console, options, panel)

    def render_usage(self, console: Any, options: Any, usage: Any) -> None:
        self._default().render_usage(console, options, usage)

    def render_description(self, console: Any, options: Any, description: Any) -> None:
        self._default().render_description(console, options, description)

    @staticmethod
    def _default() -> Any:
        from cyclopts.help import DefaultFormatter  # imports rich, which only help pages need

        return DefaultFormatter(column_specs=_columns)


def _columns(console: Any, options: Any, entries: Any) -> Any:
    from cyclopts.help import specs

    longest = max((len(name) for entry in entries for name in (*entry.names, *entry.shorts)), default=0)
    width = max(math.ceil(console.width * 0.35), longest)
    is_command = all(entry.type is None and not str(entry.names[0]).startswith("-") for entry in entries[:1])
    renderer = specs.CommandNameRenderer if is_command else specs.NameRenderer
    names = specs.ColumnSpec(
        renderer=renderer(max_width=width),
        header="Name",
        justify="left",
        style="cyclopts.name",
        max_width=width,
    )
    if any(entry.required for entry in entries):
        return (specs.AsteriskColumn, names, specs.DescriptionColumn)
    return (names, specs.DescriptionColumn)
