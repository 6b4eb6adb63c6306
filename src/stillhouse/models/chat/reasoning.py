"""What a model thought before it answered: `<think>…</think>` at the head of its text."""

from __future__ import annotations

import re

REASONING_START, REASONING_END = "<think>", "</think>"
_THOUGHTS = re.compile(
    rf"\A\s*{REASONING_START}(?P<thoughts>.*?)(?:{REASONING_END}(?P<answer>.*)|\Z)", re.DOTALL
)


def split_reasoning(text: str, *, inside: bool | None = None) -> tuple[str, str | None]:
    """Splits thoughts at the head of an answer from the answer.

    A block that was never closed (the answer was cut off) is all thought. Marks later in the text are left
    alone.

    Args:
        inside: whether the prompt ended with `<think>`, so that the text starts in mid-thought. None where
            the prompt is not known: then a text that only closes a thought began in it.

    Returns:
        The answer without blank lines around it, and the thoughts or None where there are none.
    """
    if inside is None:
        inside = REASONING_START not in text and REASONING_END in text
    if inside and not text.lstrip().startswith(REASONING_START):
        text = REASONING_START + text
    match = _THOUGHTS.match(text)
    if match is None:
        return text, None
    return (match["answer"] or "").strip("\n"), match["thoughts"].strip() or None
