"""Errors in the OpenAI API's form, and the exceptions that error_responses.py turns into one."""

from __future__ import annotations

import json


class InvalidRequestError(Exception):
    """A request that is invalid or not supported (status 400), and the field that is at fault."""

    def __init__(self, message: str, param: str | None, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param, self.code = message, param, code


class QueueFullError(Exception):
    """The queue has no room for the answers of a request (status 429)."""


class ClientDisconnected(Exception):
    """The client closed its connection before the response was complete."""


def error_body(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> bytes:
    """Returns the JSON body of an error."""
    return json.dumps(
        {"error": {"message": message, "type": kind, "param": param, "code": code}}, ensure_ascii=False
    ).encode()
