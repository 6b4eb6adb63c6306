"""Verifiers that only look: exact match, numbers, and the form of the answer."""

from __future__ import annotations

import math

from stillhouse.models import REASONING_END, REASONING_START, leading_reasoning
from stillhouse.verifiers.extract import number
from stillhouse.verifiers.types import Answer, Score, VerifierFailure


def exact(said: str, reference: str) -> Score:
    """1 for the same text, apart from blanks at the ends and the length of blanks within."""
    same = " ".join(said.split()) == " ".join(reference.split())
    return Score(1.0) if same else Score(0.0, f"{said[:80]!r} is not {reference[:80]!r}")


def numeric(said: str, reference: str, tolerance: float) -> Score:
    """1 for a number that differs from the reference by at most ``tolerance``, relative to the reference.

    A reference of 0 has no relative difference; then ``tolerance`` is absolute.
    """
    right = number(reference)
    if right is None or not math.isfinite(right):
        raise VerifierFailure(f"the reference {reference[:80]!r} is no number")
    found = number(said)
    if found is None or not math.isfinite(found):
        return Score(0.0, f"{said[:80]!r} is no number")
    allowed = tolerance * (abs(right) or 1.0)
    return Score(1.0) if abs(found - right) <= allowed else Score(0.0, f"{found:g} is not {right:g}")


def form(answer: Answer) -> Score:
    """1 for thoughts between `<think>` and `</think>`, then an answer that is not empty, without such marks.

    Thoughts that came apart from the text (``reasoning``) had their marks already.
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
