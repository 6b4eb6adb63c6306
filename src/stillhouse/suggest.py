"""The nearest right word to a wrong one, for every error that names a bad choice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice most like ``word`` (capitals, ``-`` and ``_`` do not count), or None if none is near.

    A whole last part counts as near: ``rank`` is near ``student.lora.rank``.
    """
    by_form = {_form(choice): choice for choice in reversed(list(choices))}
    found = difflib.get_close_matches(_form(word), list(by_form), n=1, cutoff=0.6)
    if found:
        return by_form[found[0]]
    last = _form(word).rsplit(".", 1)[-1]
    return next((choice for form, choice in by_form.items() if form.rsplit(".", 1)[-1] == last), None)


def did_you_mean(word: str, choices: Iterable[str]) -> str | None:
    """``Did you mean `epochs`?``, or None when no choice is near ``word``."""
    choice = nearest(word, choices)
    return None if choice is None else f"Did you mean `{choice}`?"


def _form(word: str) -> str:
    return word.lower().replace("-", "_")
