"""The nearest right word to a wrong one, for every error that names a bad choice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CUTOFF = 0.65
"""Share of letters in common below which two words are strangers: `nope` and `openai` have 0.6."""


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice most like ``word``, or None when none is near.

    Capitals, ``-`` and ``_`` do not count. A dotted choice is also known by its last part: ``epoch`` is near
    ``train.epochs``.
    """
    every = list(choices)
    for form in (_form, _last_part):
        by_form = {form(choice): choice for choice in reversed(every)}
        found = difflib.get_close_matches(form(word), list(by_form), n=1, cutoff=CUTOFF)
        if found:
            return by_form[found[0]]
    return None


def did_you_mean(word: str, choices: Iterable[str]) -> str | None:
    """``Did you mean `epochs`?``, or None when no choice is near ``word``."""
    choice = nearest(word, choices)
    return None if choice is None else f"Did you mean `{choice}`?"


def _form(word: str) -> str:
    return word.lower().replace("-", "_")


def _last_part(word: str) -> str:
    return _form(word).rpartition(".")[2]
