"""Tokens as they come into text as it may be shown: whole characters, nothing of a stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stillhouse.models import partial_match_length

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
        keep = max((partial_match_length(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def end(self) -> str:
        """What was held back and did not become a stop."""
        held, self._held = self._held, ""
        return held
