"""What stands before every request: who may ask, from where, how much, and what a browser may do.

A page on the web must not reach a server on this machine. Three things see to that: the `Host` header must
name this server (a name that an attacker points at 127.0.0.1, "DNS rebinding", does not), a foreign `Origin`
is refused, and no CORS header is ever sent. Bodies must be `application/json`, which a foreign page cannot
send without asking first.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_LIMIT = 8 * 2**20  # bytes
BODY_TIMEOUT_S = 30.0  # for all of a body: slower clients hold a place that others want
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", PAGE_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
    (b"cache-control", b"no-store"),
    (b"x-dns-prefetch-control", b"off"),
]


def error_body(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> bytes:
    """An error in the OpenAI API's form."""
    return json.dumps(
        {"error": {"message": message, "type": kind, "param": param, "code": code}}, ensure_ascii=False
    ).encode()


class Safety:
    """ASGI middleware around the whole server.

    Args:
        hosts: names by which the server may be called, without port; the port is not looked at.
        api_key: what `/v1` asks for as a bearer token; None asks nothing.
    """

    def __init__(self, app: App, *, hosts: Collection[str], api_key: str | None) -> None:
        self._app, self._hosts, self._key = app, frozenset(hosts), api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name.lower() for name, _ in message.get("headers", ())}
                message["headers"] = [
                    *message.get("headers", ()),
                    *((name, value) for name, value in _HEADERS if name not in own),
                ]
            await send(message)

        refusal = self._refusal(scope)
        if refusal:
            status, body = refusal
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            if status == 401:
                headers.append((b"www-authenticate", b"Bearer"))
            await guarded_send({"type": "http.response.start", "status": status, "headers": headers})
            await guarded_send({"type": "http.response.body", "body": body})
            return
        await self._app(scope, receive, guarded_send)

    def _refusal(self, scope: Scope) -> tuple[int, bytes] | None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if host_name(host) not in self._hosts:
            return 421, error_body(
                f"this server does not answer to the name {host_name(host)!r}", "invalid_request_error",
                code="wrong_host",
            )  # fmt: skip
        origin = headers.get(b"origin")
        if origin is not None and origin.partition("://")[2] != host:
            return 403, error_body(
                "pages from elsewhere may not use this server", "invalid_request_error", code="foreign_origin"
            )
        if self._key and scope["path"].startswith("/v1"):
            given = headers.get(b"authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode("latin-1"), self._key.encode()):
                return 401, error_body("the API key is missing or wrong", "invalid_request_error",
                                       code="invalid_api_key")  # fmt: skip
        return None


class BodyError(Exception):
    """A body that is not taken: status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """A request's body, whole.

    Raises:
        BodyError: too large (413), too slow (408), not JSON by its own word (415), or cut off (400).
    """
    headers = {name.lower(): value for name, value in scope["headers"]}
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if kind != b"application/json":
        raise BodyError(415, "the body must be sent as Content-Type: application/json")
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length) > BODY_LIMIT:
        raise BodyError(413, f"the body has {int(length):,} bytes; at most {BODY_LIMIT:,} are taken")
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise BodyError(400, "the connection ended before the body did")
                part = message.get("body", b"")
                size += len(part)
                if size > BODY_LIMIT:
                    raise BodyError(413, f"the body has more than {BODY_LIMIT:,} bytes")
                parts.append(part)
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError:
        raise BodyError(408, f"the body did not come within {BODY_TIMEOUT_S:g} s") from None


def host_name(host: str) -> str:
    """A `Host` header without its port, in lower case: `[::1]:8000` is `::1`."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.rpartition(":")[0] if name.count(":") == 1 else name
