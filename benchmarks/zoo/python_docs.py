"""Text that every Python installation has: the documentation of its standard library."""

from __future__ import annotations

import ast
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics

SHORTEST = 100  # characters


def python_documentation() -> list[str]:
    """Paragraphs of Python's language reference and docstrings of its modules, over a million characters."""
    texts = [paragraph for topic in topics.values() for paragraph in topic.split("\n\n")]
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                texts.append(ast.get_docstring(node) or "")
    return [" ".join(text.split()) for text in texts if len(text) > SHORTEST]
