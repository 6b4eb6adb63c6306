"""Calls of tools in the text of an answer, taken out as it comes; what only looks like one stays text."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from stillhouse.models import ToolCallFormat, partial_match_length


@dataclass(frozen=True)
class Call:
    """One call of a tool."""

    id: str
    name: str
    arguments: str
    """A JSON object."""


class Calls:
    """Splits an answer into text and calls.

    A call is a JSON object in the model's form, of the name of a tool and an object of arguments; the closing
    mark may be missing at the end of the answer. Anything else, such as a call of a tool that nobody offered,
    is text. Whitespace next to a call is not told. Text that may yet be a call is held back, so one that
    begins and never becomes valid comes at the end.

    Args:
        names: of the tools that were offered.
    """

    def __init__(self, form: ToolCallFormat, names: Collection[str]) -> None:
        self._form, self._names = form, names
        self._open, self._close = form.delimiters or ("", "")
        self._held = self._blank = ""
        self._looked = 0
        """Characters of what is held that are known to hold no whole object."""
        self._spoken = self._after_call = False

    def add(self, text: str, *, end: bool = False) -> list[str | Call]:
        """What of the answer so far may be told."""
        self._held += text
        told: list[str | Call] = []
        while (place := self._beginning()) is not None:
            self._say(told, place)
            found = self._call(end)
            if found is None:
                return told
            self._looked = 0
            call, length = found
            if call is None:
                self._say(told, length)
            else:
                told.append(call)
                self._held, self._blank, self._after_call = self._held[length:], "", True
        self._say(told, len(self._held) - (0 if end else partial_match_length(self._held, self._open)))
        if end and self._blank:
            told.append(self._blank)
            self._blank = ""
        return told

    def _beginning(self) -> int | None:
        """Where in what is held a call may begin: at a mark, or where the form has none at the head."""
        if self._open:
            place = self._held.find(self._open)
        elif self._spoken or not self._held.lstrip().startswith("{"):
            place = -1
        else:
            place = self._held.index("{")
        return None if place < 0 else place

    def _call(self, end: bool) -> tuple[Call | None, int] | None:
        """The call with which what is held begins, or None, and how much it is; None alone: not yet known."""
        text, body = self._held, len(self._open)
        start = body + len(text[body:]) - len(text[body:].lstrip())
        if start < len(text) and text[start] != "{":
            return None, body
        if not end and (not self._open or "}" not in text[self._looked :]):
            self._looked = len(text)
            return None
        try:
            found, after = _JSON.raw_decode(text, start)
        except (ValueError, RecursionError):
            self._looked = len(text)
            return (None, body or len(text)) if end else None
        rest = text[after:].lstrip()
        if self._open and rest.startswith(self._close):
            return self._valid(found), len(text) - len(rest) + len(self._close)
        if self._close.startswith(rest):  # the mark may still come; at the end it may be missing
            return (self._valid(found), len(text)) if end else None
        return None, body or len(text)

    def _valid(self, found: Any) -> Call | None:
        given = found.get(self._form.arguments_key, {})
        if found.get("name") not in self._names or not isinstance(given, dict):
            return None
        arguments = json.dumps(given, ensure_ascii=False)
        if not is_text(arguments):
            return None
        return Call(f"call_{secrets.token_hex(12)}", found["name"], arguments)

    def _say(self, told: list[str | Call], length: int) -> None:
        """Tells the first ``length`` characters that are held, but not yet the blank ones at their end."""
        text, self._held = self._blank + self._held[:length], self._held[length:]
        if self._after_call:
            text = text.lstrip()
        said = text.rstrip()
        self._blank = text[len(said) :]
        if said:
            told.append(said)
            self._spoken, self._after_call = True, False


def is_text(text: str) -> bool:
    """Whether ``text`` has no half of a pair of surrogates, which JSON can spell and UTF-8 cannot."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_JSON = json.JSONDecoder(parse_constant=_no_constant)
