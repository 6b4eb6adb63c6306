"""Unwraps the paragraphs of docstrings, so that help texts wrap at the width of the terminal."""

from __future__ import annotations

import inspect
import re

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
