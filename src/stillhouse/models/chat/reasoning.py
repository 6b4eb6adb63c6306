"""Splits a model's reasoning, `<think>…</think>` at the head of its text, from the answer.

This is the only parser of such blocks: :func:`split_reasoning` for a whole text, :class:`ReasoningStream` for
text that arrives in pieces, :func:`leading_reasoning` where a caller must know whether the block was closed.
"""

from __future__ import annotations

import re
from typing import Literal

REASONING_START, REASONING_END = "<think>", "</think>"
REASONING_BLOCK = re.compile(rf"{REASONING_START}(.*?){REASONING_END}", re.DOTALL)
"""A closed block anywhere in a text."""
_LEADING = re.compile(
    rf"\A\s*{REASONING_START}(?P<reasoning>.*?)(?:{REASONING_END}(?P<answer>.*)|\Z)", re.DOTALL
)

Kind = Literal["content", "reasoning"]


def leading_reasoning(text: str) -> tuple[str, str | None] | None:
    """The reasoning at the head of ``text`` and the answer after it, both as they are written.

    The answer is None where the block is never closed. Returns None where ``text`` begins with no block.
    """
    match = _LEADING.match(text)
    return (match["reasoning"], match["answer"]) if match else None


def split_reasoning(text: str, *, inside: bool | None = None) -> tuple[str, str | None]:
    """Splits the reasoning at the head of a text from the answer.

    A block that is never closed (the answer was cut off) is all reasoning. Later blocks stay in the answer.

    Args:
        inside: whether the prompt ended with `<think>`, so that the text begins inside the block. None where
            the prompt is unknown: then a text that only closes a block is taken to begin inside it.

    Returns:
        The answer without newlines around it, and the reasoning or None where there is none.
    """
    if inside is None:
        inside = REASONING_START not in text and REASONING_END in text
    # Some models repeat the `<think>` that the prompt already holds.
    if inside and not text.lstrip().startswith(REASONING_START):
        text = REASONING_START + text
    block = leading_reasoning(text)
    if block is None:
        return text, None
    reasoning, answer = block
    return (answer or "").strip("\n"), reasoning.strip() or None


class ReasoningStream:
    """Splits reasoning from text that arrives in pieces, with the same result as :func:`split_reasoning`.

    Args:
        inside: whether the prompt ended with `<think>`.
    """

    def __init__(self, *, inside: bool) -> None:
        self._inside = inside
        self._state: Literal["head", "reasoning", "answer", "plain"] = "head"
        self._held = ""
        """Text that cannot be shown yet: it may become a mark, or be whitespace before one."""
        self._shown = False

    def add(self, text: str, *, end: bool = False) -> list[tuple[Kind, str]]:
        """The text that can be shown after ``text``, in order, with its kind.

        Args:
            end: no more text follows.
        """
        self._held += text
        shown: list[tuple[Kind, str]] = []
        if self._state == "head":
            self._read_head(end)
        if self._state == "reasoning":
            self._read_reasoning(shown, end)
        # No `elif`: one piece of text can close the block and begin the answer.
        if self._state == "answer":
            text = self._held if self._shown else self._held.lstrip("\n")
            # Newlines at the end are held back: the answer may end after them, and is stripped of them.
            answer = text.rstrip("\n")
            if answer:
                shown.append(("content", answer))
                self._shown = True
            self._held = text[len(answer) :]
        elif self._state == "plain":
            if self._held:
                shown.append(("content", self._held))
            self._held = ""
        return shown

    def _read_head(self, end: bool) -> None:
        """Decides whether the text begins with a block."""
        head = self._held.lstrip()
        if head.startswith(REASONING_START):
            self._state, self._held = "reasoning", head[len(REASONING_START) :]
        elif end or (head and not REASONING_START.startswith(head)):
            self._state = "reasoning" if self._inside else "plain"

    def _read_reasoning(self, shown: list[tuple[Kind, str]], end: bool) -> None:
        reasoning, closed, rest = self._held.partition(REASONING_END)
        if not closed and not end:
            keep = partial_match_length(reasoning, REASONING_END)
            reasoning, rest = reasoning[: len(reasoning) - keep], reasoning[len(reasoning) - keep :]
        if not self._shown:
            reasoning = reasoning.lstrip()
        stripped = reasoning.rstrip()
        if stripped:
            shown.append(("reasoning", stripped))
            self._shown = True
        self._held = rest if closed or end else reasoning[len(stripped) :] + rest
        if closed:
            self._state, self._shown = "answer", False


def partial_match_length(text: str, mark: str) -> int:
    """How many characters at the end of ``text`` are the beginning of ``mark``, but not all of it."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)
