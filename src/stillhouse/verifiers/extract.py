"""Extracts the answer from a text, and reads numbers."""

from __future__ import annotations

import re

# A sign after a word or a number is a hyphen: `Pages 12-15`.
NUMBER = re.compile(r"(?:(?<![\w.)\]])[-+\u2212])?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")
_LEADING_NUMBER = re.compile(rf"\$?\s*{NUMBER.pattern}(?:/\d+)?\s?%?(?!\w)")
_GSM8K = re.compile(r"####[ \t]*([^\n]*)")
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def extract(text: str, method: str) -> str | None:
    """The answer in ``text``, stripped, or None if there is none.

    Args:
        method: a value of ``recipe.Verifier.extract``. All but ``last_line`` and ``whole`` use the last
            occurrence.
    """
    if method == "gsm8k":
        marked = _GSM8K.findall(text)
        return (marked[-1].strip().removesuffix(".") or None) if marked else None
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


def leading_number(text: str) -> float | None:
    """The number that ``text`` is, or begins with if no other number follows (``42 apples``); else None."""
    text = text.strip()
    if (value := number(text)) is not None:
        return value
    leading = _LEADING_NUMBER.match(text)
    if leading is None or any(character.isdigit() for character in text[leading.end() :]):
        return None
    return number(leading[0])


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
