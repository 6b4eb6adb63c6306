"""Finds tool calls in an answer while it streams; text that only resembles a call stays text."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from stillhouse.models import ToolCallFormat, partial_match_length


@dataclass(frozen=True)
class ParsedCall:
    """One tool call."""

    id: str
    name: str
    arguments: str
    """A JSON object, as text."""


class ToolCallParser:
    """Splits an answer into text and tool calls.

    A call is a JSON object in the model's format, with the name of an offered tool and an object of
    arguments; its closing mark may be missing at the end of the answer. Anything else, such as a call of a
    tool that was not offered, is text. Whitespace next to a call is dropped.

    Text that may yet become a call is held back. A call that begins and never becomes valid is therefore
    returned at the end.

    Args:
        names: names of the offered tools.
    """

    def __init__(self, call_format: ToolCallFormat, names: Collection[str]) -> None:
        self._format, self._names = call_format, names
        self._open, self._close = call_format.delimiters or ("", "")
        self._held = ""
        """Text that was added and not yet returned."""
        self._trailing_space = ""
        """Whitespace before what is held: returned before text, dropped before a call."""
        self._searched = 0
        """Characters of ``_held`` that are known to contain no whole JSON object."""
        self._has_text = self._after_call = False

    def add(self, text: str, *, end: bool = False) -> list[str | ParsedCall]:
        """Returns the text and calls that are certain after ``text``; with ``end``, all that is left."""
        self._held += text
        output: list[str | ParsedCall] = []
        while (start := self._find_start()) is not None:
            self._release(start, output)
            parsed = self._parse_call(end)
            if parsed is None:
                return output
            self._searched = 0
            call, length = parsed
            if call is None:
                self._release(length, output)
            else:
                output.append(call)
                self._held, self._trailing_space, self._after_call = self._held[length:], "", True
        self._release(len(self._held) - (0 if end else partial_match_length(self._held, self._open)), output)
        if end and self._trailing_space:
            output.append(self._trailing_space)
            self._trailing_space = ""
        return output

    def _find_start(self) -> int | None:
        """Index in ``_held`` where a call may start: at a mark or, in a format without marks, at the head."""
        if self._open:
            index = self._held.find(self._open)
        elif self._has_text or not self._held.lstrip().startswith("{"):
            index = -1
        else:
            index = self._held.index("{")
        return None if index < 0 else index

    def _parse_call(self, end: bool) -> tuple[ParsedCall | None, int] | None:
        """Parses a call at the start of ``_held``.

        Returns:
            The call, or None if this is text, and the number of characters; None while it is undecided.
        """
        text, body = self._held, len(self._open)
        start = body + len(text[body:]) - len(text[body:].lstrip())
        if start < len(text) and text[start] != "{":
            return None, body
        # Only a closing brace can complete the object. Parsing at every delta would cost the square of its
        # length.
        if not end and (not self._open or "}" not in text[self._searched :]):
            self._searched = len(text)
            return None
        try:
            value, stop = _JSON.raw_decode(text, start)
        except (ValueError, RecursionError):
            self._searched = len(text)
            return (None, body or len(text)) if end else None
        rest = text[stop:].lstrip()
        if self._open and rest.startswith(self._close):
            return self._validate(value), len(text) - len(rest) + len(self._close)
        if self._close.startswith(rest):  # the mark may still come; at the end it may be missing
            return (self._validate(value), len(text)) if end else None
        return None, body or len(text)

    def _validate(self, value: Any) -> ParsedCall | None:
        arguments = value.get(self._format.arguments_key, {})
        if value.get("name") not in self._names or not isinstance(arguments, dict):
            return None
        arguments_json = json.dumps(arguments, ensure_ascii=False)
        if not is_encodable(arguments_json):
            return None
        return ParsedCall(f"call_{secrets.token_hex(12)}", value["name"], arguments_json)

    def _release(self, length: int, output: list[str | ParsedCall]) -> None:
        """Moves the first ``length`` held characters to ``output``, except whitespace at their end."""
        text, self._held = self._trailing_space + self._held[:length], self._held[length:]
        if self._after_call:
            text = text.lstrip()
        stripped = text.rstrip()
        self._trailing_space = text[len(stripped) :]
        if stripped:
            output.append(stripped)
            self._has_text, self._after_call = True, False


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can encode ``text``: JSON can spell half of a surrogate pair, UTF-8 cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# Python's json accepts NaN and Infinity by default.
_JSON = json.JSONDecoder(parse_constant=_reject_constant)
