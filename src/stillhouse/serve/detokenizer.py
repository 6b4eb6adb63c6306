"""Tokens as they come into text as it may be shown: whole characters, nothing of a stop, thoughts apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from stillhouse.models import REASONING_END, REASONING_START

Kind = Literal["content", "reasoning"]
Part = tuple[Kind, str]
_UNFINISHED = "\ufffd"  # what a tokenizer writes for the first bytes of a character


class Detokenizer:
    """Text of tokens one by one; joined it is the text of all of them.

    Args:
        shown: special tokens that are part of the text; the others are not.
    """

    def __init__(self, tokenizer: Any, *, shown: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        self._hidden = {number for number, token in added if token.special and token.content not in shown}
        self._ids: list[int] = []
        self._known = self._told = 0

    def add(self, token: int) -> str:
        """The text that ``token`` completes; empty in the middle of a character."""
        self._ids.append(token)
        return self._new(end=False)

    def end(self) -> str:
        """What is left of a character that was cut off."""
        return self._new(end=True)

    def _new(self, *, end: bool) -> str:
        before = self._text(self._ids[self._known : self._told])
        text = self._text(self._ids[self._known :])
        if len(text) <= len(before) or (text.endswith(_UNFINISHED) and not end):
            return ""
        self._known, self._told = self._told, len(self._ids)
        return text[len(before) :]

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode([number for number in ids if number not in self._hidden]))


class Stops:
    """Holds back what may become a stop; ends before the first one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def add(self, text: str) -> str:
        """What of the text so far may be shown."""
        if self.stopped:
            return ""
        held = self._held + text
        places = [held.index(stop) for stop in self._stops if stop in held]
        if places:
            self.stopped, self._held = True, ""
            return held[: min(places)]
        keep = max((overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def end(self) -> str:
        """What was held back and did not become a stop."""
        held, self._held = self._held, ""
        return held


class Thoughts:
    """Takes `<think>…</think>` at the head apart, as :func:`~stillhouse.models.split_reasoning` does.

    Args:
        inside: the prompt ended with `<think>`.
    """

    def __init__(self, *, inside: bool) -> None:
        self._inside = inside
        self._state: Literal["head", "thoughts", "answer", "plain"] = "head"
        self._held = ""
        self._shown = False

    def add(self, text: str, *, end: bool = False) -> list[Part]:
        """What of the text so far may be shown, and as what."""
        self._held += text
        parts: list[Part] = []
        if self._state == "head":
            self._read_head(end)
        if self._state == "thoughts":
            thoughts, closed, rest = self._held.partition(REASONING_END)
            if not closed and not end:
                keep = overlap(thoughts, REASONING_END)
                thoughts, rest = thoughts[: len(thoughts) - keep], thoughts[len(thoughts) - keep :]
            if not self._shown:
                thoughts = thoughts.lstrip()
            said = thoughts.rstrip()
            if said:
                parts.append(("reasoning", said))
                self._shown = True
            self._held = rest if closed or end else thoughts[len(said) :] + rest
            if closed:
                self._state, self._shown = "answer", False
        if self._state == "answer":
            text = self._held if self._shown else self._held.lstrip("\n")
            said = text.rstrip("\n")
            if said:
                parts.append(("content", said))
                self._shown = True
            self._held = text[len(said) :]
        elif self._state == "plain":
            if self._held:
                parts.append(("content", self._held))
            self._held = ""
        return parts

    def _read_head(self, end: bool) -> None:
        blank = len(self._held) - len(self._held.lstrip())
        head = self._held[blank:]
        if head.startswith(REASONING_START):
            self._state, self._held = "thoughts", head[len(REASONING_START) :]
        elif end or (head and not REASONING_START.startswith(head)):
            self._state = "thoughts" if self._inside else "plain"


def overlap(text: str, mark: str) -> int:
    """Characters at the end of ``text`` that begin ``mark``."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)
