"""Did-you-mean suggestions: the valid choice nearest to a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CUTOFF = 0.65
"""Similarity (difflib) below which nothing is suggested: `nope` and `openai` have 0.6."""


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice most similar to ``word``, or None if none is similar enough.

    Case does not count, and ``-`` equals ``_``. A dotted choice also matches by its last component:
    ``epoch`` is near ``train.epochs``.
    """
    candidates = list(choices)
    for normalise in (_normalised, _last_component):
        by_form = {normalise(choice): choice for choice in reversed(candidates)}
        matches = difflib.get_close_matches(normalise(word), list(by_form), n=1, cutoff=CUTOFF)
        if matches:
            return by_form[matches[0]]
    return None


def did_you_mean(word: str, choices: Iterable[str]) -> str | None:
    """``Did you mean `epochs`?``, or None if no choice is near ``word``."""
    choice = nearest(word, choices)
    return None if choice is None else f"Did you mean `{choice}`?"


def _normalised(word: str) -> str:
    return word.lower().replace("-", "_")


def _last_component(word: str) -> str:
    return _normalised(word).rpartition(".")[2]
