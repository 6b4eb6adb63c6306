"""Extracts the answer from a text, and reads numbers."""

from __future__ import annotations

import re

NUMBER = re.compile(r"[-+\u2212]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def extract(text: str, method: str) -> str | None:
    """The answer in ``text``, stripped, or None if there is none.

    Args:
        method: a value of ``recipe.Verifier.extract``. ``answer_tag``, ``boxed`` and ``last_number`` use the
            last occurrence.
    """
    if method == "answer_tag":
        answers = _TAGGED.findall(text)
        return answers[-1].strip() if answers else None
    if method == "boxed":
        return _last_boxed(text)
    if method == "last_line":
        lines = text.strip().splitlines()
        return lines[-1].strip() if lines else None
    if method == "last_number":
        numbers = NUMBER.findall(text)
        return numbers[-1] if numbers else None
    assert method == "whole", method
    return text.strip() or None


def number(text: str) -> float | None:
    """Parses a number (``1,000``, ``-2.5e3``, ``3/4``, ``50%``, ``$12``); None if ``text`` is not one."""
    plain = text.strip().strip("$").replace(",", "").replace("\u2212", "-").strip()
    scale = 0.01 if plain.endswith("%") else 1.0
    numerator, slash, denominator = plain.removesuffix("%").partition("/")
    try:
        return scale * float(numerator) / (float(denominator) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        return None


def _last_boxed(text: str) -> str | None:
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    begin = start + len(r"\boxed{")
    depth = 1  # a regular expression cannot match nested braces
    for end in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[begin:end].strip()
    return None
