"""Splits a model's reasoning, `<think>…</think>` at the head of its text, from the answer.

This is the only parser of such blocks: :func:`split_reasoning` for a whole text, :class:`ReasoningStream` for
text that arrives in pieces, :func:`leading_reasoning` where a caller must know whether the block was closed.
Where the prompt is known (local models), only `<think>` that the text or the prompt opens counts. A text of
unknown origin (a file, an API) may also begin with a closed block in another model's marks (:data:`MARKS`).
"""

from __future__ import annotations

import re
from typing import Literal

REASONING_START, REASONING_END = "<think>", "</think>"
REASONING_BLOCK = re.compile(rf"{REASONING_START}(.*?){REASONING_END}", re.DOTALL)
"""A closed block anywhere in a text."""
MARKS = (
    (REASONING_START, REASONING_END),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # OpenThoughts, Sky-T1
)
"""What opens and closes a block of reasoning."""
_MARKED = re.compile(
    r"\A\s*(?:"
    + "|".join(f"{re.escape(start)}(.*?){re.escape(end)}" for start, end in MARKS[1:])
    + r")(?P<answer>.*)\Z",
    re.DOTALL,
)
_SOLUTION = re.compile(r"\A\s*<\|begin_of_solution\|>(.*?)(?:<\|end_of_solution\|>)?\s*\Z", re.DOTALL)
# A model that closes the block of its prompt writes the mark right after its reasoning and right before its
# answer, or on a line of its own. An answer that speaks of the mark has a blank or quotation marks beside it.
_CLOSED_ONLY = re.compile(rf"(?:\A|[^ \t`'\"(]){REASONING_END}(?=\Z|[^ \t`'\".,;:!?)])")
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
            the prompt is unknown: then a text that closes a block as a model does, without opening one, is
            taken to begin inside it, and the marks of other models count, too.

    Returns:
        The answer without newlines around it, and the reasoning or None where there is none.
    """
    if inside is None:
        if marked := _MARKED.match(text):
            reasoning = next(group for group in marked.groups()[:-1] if group is not None)
            answer = marked["answer"]
            if solution := _SOLUTION.match(answer):
                answer = solution[1]
            return answer.strip("\n"), reasoning.strip() or None
        inside = REASONING_START not in text and _closes_reasoning(text)
    # Some models repeat the `<think>` that the prompt already holds.
    if inside and not text.lstrip().startswith(REASONING_START):
        text = REASONING_START + text
    block = leading_reasoning(text)
    if block is None:
        return text, None
    reasoning, answer = block
    return (answer or "").strip("\n"), reasoning.strip() or None


def _closes_reasoning(text: str) -> bool:
    """Whether ``text`` closes a block that its prompt opened, rather than speaking of the mark."""
    if REASONING_END not in text:  # much faster than the search
        return False
    match = _CLOSED_ONLY.search(text)
    # Within a fence of code, the mark is quoted.
    return match is not None and text.count("```", 0, match.start()) % 2 == 0


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
