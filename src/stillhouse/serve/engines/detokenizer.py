"""Turns generated tokens into text while they stream: whole characters, without stop sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stillhouse.models import partial_match_length

REPLACEMENT = "\ufffd"  # what a tokenizer writes for the first bytes of a character


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
        if len(text) <= len(context) or (text.endswith(REPLACEMENT) and not end):
            return ""
        self._context_start, self._emitted = self._emitted, len(self._ids)
        return text[len(context) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode([token for token in ids if token not in self._hidden_ids]))


class TextBuilder:
    """Turns the tokens of one answer into its text: whole characters, before any stop sequence.

    Args:
        stops: stop sequences.
        shown: as of :class:`Detokenizer`.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], *, shown: Sequence[str] = ()) -> None:
        self._detokenizer, self._stops = Detokenizer(tokenizer, shown=shown), StopFilter(stops)

    @property
    def stop_sequence(self) -> str | None:
        """The stop sequence that ended the text."""
        return self._stops.stopped

    def add(self, token: int | None, finish_reason: str | None) -> tuple[str, str | None]:
        """Returns the text that ``token`` completes, and the finish reason.

        Args:
            token: None adds nothing.
            finish_reason: of the engine, if this is its last token.
        """
        text = "" if token is None else self._stops.add(self._detokenizer.add(token))
        if self._stops.stopped:
            return text, "stop"
        if finish_reason:
            text += self._stops.add(self._detokenizer.end()) + self._stops.end()
        return text, "stop" if self._stops.stopped else finish_reason


class StopFilter:
    """Ends a text before its first stop sequence, and holds back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped: str | None = None
        """The stop sequence that ended the text."""

    def add(self, text: str) -> str:
        """Returns the text that is certain to precede any stop sequence."""
        if self.stopped:
            return ""
        held = self._held + text
        positions = [(held.index(stop), stop) for stop in self._stops if stop in held]
        if positions:
            position, self.stopped = min(positions)
            self._held = ""
            return held[:position]
        keep = max((partial_match_length(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def end(self) -> str:
        """Returns what was held back and did not become a stop sequence."""
        held, self._held = self._held, ""
        return held
