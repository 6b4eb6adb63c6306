"""Checks every request before it is handled: host, origin, API key and body size.

A web page elsewhere must not reach a server on this machine. Three rules prevent that. The `Host` header must
name this server: under DNS rebinding, where an attacker's domain resolves to 127.0.0.1, it does not. A
foreign `Origin` is refused. No CORS header is ever sent. Besides, bodies must be `application/json`, which a
foreign page cannot send without a CORS preflight request.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from stillhouse.serve.error_forms import error_in_form
from stillhouse.serve.errors import error_body

Scope = MutableMapping[str, Any]
AsgiMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[AsgiMessage]]
Send = Callable[[AsgiMessage], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_LIMIT = 8 * 2**20  # bytes
BODY_TIMEOUT_S = 30.0  # for a whole body: a slow client must not hold its connection for ever
# No inline scripts and no other origin: even if a model's text became HTML, it could neither run code nor
# send a conversation anywhere.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", PAGE_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
    (b"cache-control", b"no-store"),  # answers are private: no copy in the browser's cache
    (b"x-dns-prefetch-control", b"off"),  # a link in an answer must not cause a DNS query
]


class SecurityMiddleware:
    """ASGI middleware that refuses requests and adds security headers to every response.

    Args:
        hosts: names by which clients may call the server, without port. Any port is accepted.
        api_key: key that all but the page requires, as a bearer token or in `X-Api-Key`; None requires none.
    """

    def __init__(self, app: App, *, hosts: Collection[str], api_key: str | None) -> None:
        self._app, self._hosts, self._key = app, frozenset(hosts), api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: AsgiMessage) -> None:
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
            # The body was not read, so the connection cannot carry another request.
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            if status == 401:
                headers.append((b"www-authenticate", b"Bearer"))
            await send_with_headers({"type": "http.response.start", "status": status, "headers": headers})
            body = error_in_form(scope["path"], status, body)
            await send_with_headers({"type": "http.response.body", "body": body})
            return
        await self._app(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> tuple[int, bytes] | None:
        """Status and body of a refused request; None if it may pass."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if host_name(host) not in self._hosts:
            return 421, error_body(
                f"this server does not answer to the name {host_name(host)!r}", "invalid_request_error",
                code="wrong_host",
            )  # fmt: skip
        # Programs send no Origin; browsers send one with every POST. The page itself is of the same host.
        origin = headers.get(b"origin")
        if origin is not None and origin.partition("://")[2] != host:
            return 403, error_body(
                "pages of other sites may not use this server", "invalid_request_error", code="foreign_origin"
            )
        if self._key and not _is_public(scope["path"]):
            token = headers.get(b"authorization", "").removeprefix("Bearer ") or headers.get(b"x-api-key", "")
            # In constant time, so that response times do not reveal how much of a guessed key is right.
            if not hmac.compare_digest(token.encode("latin-1"), self._key.encode()):
                return 401, error_body("the API key is missing or wrong", "invalid_request_error",
                                       code="invalid_api_key")  # fmt: skip
        return None


def _is_public(path: str) -> bool:
    """Whether a path needs no key: the page, which asks the user for one, and what tells nothing private."""
    return path in ("/", "/health", "/openapi.json") or path.startswith("/page/")


class BodyError(Exception):
    """A request body that is refused: status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """Reads a whole request body.

    Raises:
        BodyError: it is too large (413), too slow (408), not declared as JSON (415), or cut off (400).
    """
    headers = {name.lower(): value for name, value in scope["headers"]}
    content_type = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if content_type != b"application/json":
        raise BodyError(415, "the body must be sent as Content-Type: application/json")
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length) > BODY_LIMIT:
        raise BodyError(413, f"the body has {int(length):,} bytes; the limit is {BODY_LIMIT:,}")
    chunks, size = [], 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise BodyError(400, "the connection ended before the body did")
                chunk = message.get("body", b"")
                # Counted as well as announced: a chunked body has no Content-Length.
                size += len(chunk)
                if size > BODY_LIMIT:
                    raise BodyError(413, f"the body has more than {BODY_LIMIT:,} bytes")
                chunks.append(chunk)
                if not message.get("more_body"):
                    return b"".join(chunks)
    except TimeoutError:
        raise BodyError(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None


def host_name(host: str) -> str:
    """Returns a `Host` header without its port, in lower case: `[::1]:8000` is `::1`."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.rpartition(":")[0] if name.count(":") == 1 else name
