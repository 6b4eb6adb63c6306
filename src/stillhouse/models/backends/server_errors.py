"""An API's error: what it says, and what it belongs to. One table for every request that fails.

| cause | belongs to | examples | after that |
|---|---|---|---|
| `CREDIT` | the account | 402, `insufficient_quota` | stops at once; nothing is recorded |
| `KEY` | the account | 401, 403 | stops at once |
| `MODEL` | the address | 404 | stops at once |
| `CONTENT` | the prompt | 400 of a content policy | recorded; not asked again |
| `CONTEXT` | the prompt | 413, `context_length_exceeded` | recorded; not asked again |
| `PARAMETER` | the request | 400 or 422 that names a parameter | adapted, or stops before the first answer |
| `TEMPORARY` | provider or network | 429, 5xx | retried; the next run asks again |
| `REFUSED` | unknown | any other 4xx | recorded; the next run asks again |

Only what belongs to the prompt is final. In doubt a failure does not: asking once too often is free, as
providers do not bill refused requests.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

MESSAGE_CHARACTERS = 600
OVERLOADED = (429, 503, 529)
"""Statuses with which a server asks to slow down."""
_TRANSIENT = (408, 409, 425, *OVERLOADED)
_CREDIT = re.compile(
    r"insufficient[_ ](account[_ ])?(quota|balance|credits?|funds)|exceeded_current_quota|"
    r"exceeded your current quota|credit balance|credit limit|(more|enough|out of|no) credits?\b|"
    r"billing_(hard_limit|not_active)|payment required|arrearage|overdue[ -]payment|余额不足|欠费"
)
_CREDIT_STATUSES = (400, 403, 429)
_ANNOUNCED_WAIT = re.compile(r"(retry|try again) (in|after) |per (second|minute|hour|day)")
_CONTENT = re.compile(
    r"content[_ ](management[_ ])?policy|content[_ ]filter|content exists risk|data_?inspection|"
    r"inappropriate content|sensitive content|prohibited[_ ]content|flagged|moderation|"
    r"usage (guidelines|polic)|"
    r"safety (system|polic|filter)|responsible ?ai|violat\w+ (of )?(our|the|openai's) (usage|content|safety)"
)
_CONTENT_STATUSES = (400, 403, 422, 451)
_ACCOUNT = re.compile(r"your (account|organi[sz]ation|access|key|project)|api key|suspended|deactivated")
_CONTEXT = re.compile(
    r"context_length|context length|context window|context size|maximum context|too long|input length"
)
_UNSUPPORTED = re.compile(
    r"unsupported|not supported|unrecogni[sz]ed|unknown|not permitted|extra_forbidden|extra (inputs|fields)|"
    r"unexpected|not allowed|cannot find|is unavailable|does not support|invalid (field|key|argument)"
)
_PLAIN_NAMES = ("temperature", "seed", "logprobs")
"""Parameters without an underscore that no sentence contains by chance; others count only in quotes."""


class Cause(enum.Enum):
    """What a failed request belongs to. The module's docstring has the table."""

    CREDIT = enum.auto()
    KEY = enum.auto()
    MODEL = enum.auto()
    CONTENT = enum.auto()
    CONTEXT = enum.auto()
    PARAMETER = enum.auto()
    TEMPORARY = enum.auto()
    REFUSED = enum.auto()


@dataclass(frozen=True)
class ServerError:
    """An error's content, in whichever form the server writes it."""

    status: int
    message: str
    """In the server's own words; parts of a nested error are joined."""
    code: str = ""
    fields: tuple[str, ...] = ()
    """Names that the error points at (OpenAI's `param`, pydantic's `loc`)."""

    def refused_parameters(self, sent: Collection[str]) -> tuple[str, ...]:
        """Which of the parameters in ``sent`` the error names."""
        return tuple(name for name in sent if name in self.fields or self._mentions(name))

    @property
    def says_unsupported(self) -> bool:
        """Whether the server does not know a parameter, rather than refuse its value."""
        return bool(_UNSUPPORTED.search(f"{self.code} {self.message}".lower()))

    def cause(self, sent: Collection[str], *, wait_announced: bool = False) -> Cause:
        """What the failure belongs to.

        Args:
            sent: names of the request's parameters, apart from model and messages.
            wait_announced: whether the server says when to try again (Retry-After).
        """
        status, words = self.status, f"{self.code} {self.message}".lower()
        # Gemini speaks of the quota for limits of a minute, too, and then says how long to wait.
        waits = wait_announced or bool(_ANNOUNCED_WAIT.search(words))
        no_credit = _CREDIT.search(self.code.lower()) or (not waits and _CREDIT.search(words))
        if status == 402 or (status in _CREDIT_STATUSES and no_credit):
            return Cause.CREDIT
        if status in _CONTENT_STATUSES and speaks_of_content(words):
            return Cause.CONTENT
        if status in (401, 403):
            return Cause.KEY
        if status == 404:
            return Cause.MODEL
        if status in _TRANSIENT or status >= 500:
            return Cause.TEMPORARY
        if status == 413 or _CONTEXT.search(words):
            return Cause.CONTEXT
        return Cause.PARAMETER if self.refused_parameters(sent) else Cause.REFUSED

    def _mentions(self, name: str) -> bool:
        quoted = re.search(rf"""["'`]{re.escape(name)}["'`]""", self.message)
        plain = "_" in name or name in _PLAIN_NAMES
        return bool(quoted or (plain and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", self.message)))


def speaks_of_content(text: str) -> bool:
    """Whether an error's text blames the prompt's content, and not the account."""
    text = text.lower()
    return bool(_CONTENT.search(text)) and not _ACCOUNT.search(text)


def parse_error(status: int, body: str) -> ServerError:
    """The error in a body of any of the usual forms (OpenAI, FastAPI, Mistral, Gemini, gateways)."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return ServerError(status, _shortened(body) or "no reason given")
    if isinstance(data, list) and data:  # Gemini
        data = data[0]
    error = data.get("error") or data if isinstance(data, dict) else data
    code, fields = "", ()
    if isinstance(error, dict):
        code = " ".join(str(error[key]) for key in ("code", "type", "status") if error.get(key))
        fields = (str(error["param"]),) if error.get("param") else ()
    details = list(_details(error))
    message = "; ".join(dict.fromkeys(text for text, _ in details if text))
    named = tuple(name for _, names in details for name in names)
    return ServerError(status, _shortened(message) or _shortened(body), code, (*fields, *named))


def _details(error: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The sentences in an error, and the field names that each points at."""
    if isinstance(error, str):
        yield error, ()
    elif isinstance(error, list):
        for item in error:
            yield from _details(item)
    elif isinstance(error, dict):
        if "msg" in error:  # pydantic: {"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}
            location = [str(step) for step in error.get("loc") or () if step != "body"]
            yield f"{'.'.join(location)}: {error['msg']}".lstrip(": "), tuple(location)
        for key in ("message", "detail", "error"):
            yield from _details(error.get(key))
        metadata = error.get("metadata")  # OpenRouter: the words of the provider behind it
        if isinstance(metadata, dict):
            yield from _details([metadata.get("raw"), metadata.get("reasons")])


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MESSAGE_CHARACTERS else f"{text[:MESSAGE_CHARACTERS]}…"
