"""What of a text counts as the answer."""

from __future__ import annotations

import re

NUMBER = re.compile(r"[-+\u2212]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def extract(text: str, how: str) -> str | None:
    """The part of ``text`` that ``recipe.Verifier.extract`` names, stripped; None where there is none.

    ``answer_tag``, ``boxed`` and ``last_number`` take the last one.
    """
    if how == "answer_tag":
        found = _TAGGED.findall(text)
        return found[-1].strip() if found else None
    if how == "boxed":
        return _last_boxed(text)
    if how == "last_line":
        lines = text.strip().splitlines()
        return lines[-1].strip() if lines else None
    if how == "last_number":
        numbers = NUMBER.findall(text)
        return numbers[-1] if numbers else None
    assert how == "whole", how
    return text.strip() or None


def number(text: str) -> float | None:
    """The number that ``text`` is (``1,000``, ``-2.5e3``, ``3/4``, ``50%``, ``$12``), or None."""
    plain = text.strip().strip("$").replace(",", "").replace("\u2212", "-").strip()
    scale = 0.01 if plain.endswith("%") else 1.0
    above, slash, below = plain.removesuffix("%").partition("/")
    try:
        return scale * float(above) / (float(below) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        return None


def _last_boxed(text: str) -> str | None:
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    begin = start + len(r"\boxed{")
    depth = 1
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin:place].strip()
    return None
