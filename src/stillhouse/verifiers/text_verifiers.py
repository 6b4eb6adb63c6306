"""Verifiers without a child process: exact match, numbers, and the format of an answer."""

from __future__ import annotations

import math

from stillhouse.models import REASONING_END, REASONING_START, leading_reasoning
from stillhouse.verifiers.extract import leading_number, number
from stillhouse.verifiers.types import Answer, Score, VerifierFailure


def exact_match(answer: str, reference: str) -> Score:
    """1 for the same text, apart from whitespace at the ends and the length of whitespace within."""
    same = " ".join(answer.split()) == " ".join(reference.split())
    return Score(1.0) if same else Score(0.0, f"{answer[:80]!r} is not {reference[:80]!r}")


def numeric_match(answer: str, reference: str, tolerance: float) -> Score:
    """1 for a number that differs from the reference by at most ``tolerance``, relative to the reference.

    Words may follow the answer's number (``42 apples``), but no other number.
    A reference of 0 has no relative difference; then ``tolerance`` is absolute.
    """
    expected = number(reference)
    if expected is None or not math.isfinite(expected):
        raise VerifierFailure(f"the reference {reference[:80]!r} is not a number")
    value = leading_number(answer)
    if value is None or not math.isfinite(value):
        return Score(0.0, f"{answer[:80]!r} is not a number")
    allowed = tolerance * (abs(expected) or 1.0)
    return Score(1.0) if abs(value - expected) <= allowed else Score(0.0, f"{value:g} is not {expected:g}")


def format_check(answer: Answer) -> Score:
    """1 for thoughts between `<think>` and `</think>`, then an answer that is not empty and has no such tags.

    Reasoning that is separate from the text (``answer.reasoning``) counts as thoughts between tags.
    """
    thoughts, text = answer.reasoning, answer.text
    if thoughts is None:
        block = leading_reasoning(text)
        if block is None or block[1] is None:
            return Score(0.0, "no thoughts between <think> and </think>")
        thoughts, text = block[0], block[1]
    if not thoughts.strip():
        return Score(0.0, "empty thoughts")
    if REASONING_START in text or REASONING_END in text:
        return Score(0.0, "thoughts are opened or closed again in the answer")
    return Score(1.0) if text.strip() else Score(0.0, "no answer after the thoughts")
