"""Turns generated tokens into text while they stream: whole characters, without stop sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from stillhouse.models import REASONING_END, REASONING_START

Kind = Literal["content", "reasoning"]
Part = tuple[Kind, str]
_REPLACEMENT = "\ufffd"  # what a tokenizer writes for the first bytes of a character


class Detokenizer:
    """Decodes tokens one by one; the joined text is the text of all of them.

    Args:
        shown: special tokens that are part of the text; the others are left out.
    """

    def __init__(self, tokenizer: Any, *, shown: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        added_tokens = tokenizer.added_tokens_decoder.items()
        self._hidden_ids = {
            token_id for token_id, token in added_tokens if token.special and token.content not in shown
        }
        self._ids: list[int] = []
        # Decoding starts at ``_context_start``, not at the first new token: a tokenizer may write the same
        # token with or without a space, depending on the one before. It does not start at the first token of
        # all, or an answer would cost the square of its length.
        self._context_start = self._emitted = 0

    def add(self, token: int) -> str:
        """Returns the text that ``token`` completes; empty in the middle of a character."""
        self._ids.append(token)
        return self._new_text(end=False)

    def end(self) -> str:
        """Returns what is left of a character that was cut off."""
        return self._new_text(end=True)

    def _new_text(self, *, end: bool) -> str:
        context = self._decode(self._ids[self._context_start : self._emitted])
        text = self._decode(self._ids[self._context_start :])
        if len(text) <= len(context) or (text.endswith(_REPLACEMENT) and not end):
            return ""
        self._context_start, self._emitted = self._emitted, len(self._ids)
        return text[len(context) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode([token for token in ids if token not in self._hidden_ids]))


class StopFilter:
    """Ends a text before its first stop sequence, and holds back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def add(self, text: str) -> str:
        """Returns the text that is certain to precede any stop sequence."""
        if self.stopped:
            return ""
        held = self._held + text
        positions = [held.index(stop) for stop in self._stops if stop in held]
        if positions:
            self.stopped, self._held = True, ""
            return held[: min(positions)]
        keep = max((overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def end(self) -> str:
        """Returns what was held back and did not become a stop sequence."""
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
    """Returns how many characters at the end of ``text`` are the beginning of ``mark``."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)
