"""Passes requests on to models of another OpenAI-compatible server, and their answers back.

Only `model` is read and replaced, in the request and in the answer. The other server decides what it
supports and which errors it returns. Nothing is retried, because clients retry by themselves. The client's
headers, its key among them, are not passed on. What the other server does with the prompts is beyond this
server's control.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import httpx2

from stillhouse.console import console
from stillhouse.errors import ApiError, AuthenticationError
from stillhouse.models import Reference
from stillhouse.serve.errors import InvalidRequestError

CONNECT_S = 10.0
SILENCE_S = 600.0
"""Seconds without a byte after which an answer is abandoned; a long prompt takes a while to read."""
KEPT_S = 2.0
"""Seconds for which an idle connection is reused: fewer than the 5 after which uvicorn closes one."""
_EVENT_SEPARATOR = re.compile(rb"\r?\n\r?\n")
_DONE = b"data: [DONE]"


class UpstreamError(Exception):
    """The other server's own error: status, body in the API's form, and its `Retry-After` header if any."""

    def __init__(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers


class Upstream:
    """One model of another server. Connects at the first request.

    Args:
        name: the model's name here.
        reference: a reference of kind `api`.
        api_key_env: environment variable with the other server's key; if it is empty, no key is sent.

    Raises:
        AuthenticationError: the key contains characters that an HTTP header cannot carry.
    """

    def __init__(self, name: str, reference: Reference, *, api_key_env: str) -> None:
        assert reference.url is not None and reference.name is not None
        address = urlsplit(reference.url)
        self.name = name
        self.host = address.netloc.rpartition("@")[2]
        """Host and port, without a user name and password."""
        self._is_remote, self._is_encrypted = reference.is_remote, address.scheme == "https"
        self._reference, self._upstream_name, self._key_variable = reference, reference.name, api_key_env
        key = os.environ.get(api_key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise AuthenticationError(
                f"the key in {api_key_env} has characters that no header can carry",
                hint="Set it again, without line breaks and in ASCII.",
            )
        self._has_key = bool(key)
        self._client = httpx2.AsyncClient(
            # Compressed events would be decompressed here only to be sent on.
            headers={"accept-encoding": "identity"} | ({"authorization": f"Bearer {key}"} if key else {}),
            timeout=httpx2.Timeout(SILENCE_S, connect=CONNECT_S, pool=None),
            limits=httpx2.Limits(max_connections=None, keepalive_expiry=KEPT_S),
            # No proxy of the environment may see requests to this machine.
            trust_env=self._is_remote,
        )

    def announce(self) -> None:
        """Prints where prompts go."""
        key = (
            f"the key in {self._key_variable}" if self._has_key else f"no key ({self._key_variable} is empty)"
        )
        if not self._is_remote:
            console.info(f"{self.name}: prompts are passed on to {self.host}, with {key}")
            return
        encryption = "" if self._is_encrypted else ", unencrypted"
        console.warn(
            f"{self.name}: prompts go to {self.host}, which is another machine{encryption}; with {key}"
        )

    @contextlib.asynccontextmanager
    async def post(self, path: str, body: bytes) -> AsyncIterator[bytes | AsyncIterator[bytes]]:
        """Sends a request and yields its answer: a whole body, or an iterator of events.

        Leaving the context early closes the connection, which cancels the request at the other server.

        Args:
            path: path below the API's base URL, such as `/chat/completions`.
            body: the client's body, as received.

        Raises:
            InvalidRequestError: the body is not JSON.
            UpstreamError: the other server returned an error.
            ApiError: it cannot be reached, or its response is not an answer.
        """
        request = self._client.build_request(
            "POST",
            self._reference.endpoint(path),
            content=self._request_body(body),
            headers={"content-type": "application/json"},
        )
        try:
            response = await self._client.send(request, stream=True)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ApiError(
                f"{self.name}: {self.host} does not answer ({_describe(error)}); "
                "check that this server is running, or use another model"
            ) from error
        try:
            if response.status_code != 200:
                raise self._error(response, await self._read(response))
            if response.headers.get("content-type", "").startswith("text/event-stream"):
                yield self._events(response)
            else:
                yield self._whole_answer(response, await self._read(response))
        finally:
            await response.aclose()

    def _request_body(self, body: bytes) -> bytes:
        try:
            return json.dumps(json.loads(body) | {"model": self._upstream_name}, allow_nan=False).encode()
        except (ValueError, RecursionError):
            raise InvalidRequestError("the body is not JSON", None) from None

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def _read(self, response: httpx2.Response) -> bytes:
        try:
            return await response.aread()
        except httpx2.HTTPError as error:
            raise self._interrupted(error) from error

    async def _events(self, response: httpx2.Response) -> AsyncIterator[bytes]:
        """Yields complete events as they arrive; raises ApiError if the last event is missing."""
        rest, ended = b"", False
        try:
            async for data in response.aiter_bytes():
                *blocks, rest = _EVENT_SEPARATOR.split(rest + data)
                events = [self._event(block) for block in blocks]
                ended = ended or any(is_last for _, is_last in events)
                if events:
                    yield b"".join(event + b"\n\n" for event, _ in events)
        except httpx2.HTTPError as error:
            # A connection that breaks after the last event loses nothing.
            if not ended:
                raise self._interrupted(error) from error
        if rest.strip() == _DONE:
            yield _DONE + b"\n\n"
        elif not ended:
            raise self._interrupted(None)

    def _event(self, event: bytes) -> tuple[bytes, bool]:
        """Returns an event with the model's name here, and whether it may be the last: an end or an error."""
        if not event.startswith(b"data:"):
            return event, False
        try:
            data = json.loads(event[5:])
        except (ValueError, RecursionError):
            return event, event.rstrip() == _DONE
        if not isinstance(data, dict):
            return event, False
        return b"data: " + self._with_own_name(data), bool(data.get("error"))

    def _whole_answer(self, response: httpx2.Response, body: bytes) -> bytes:
        try:
            data = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ApiError(f"{self.name}: the response of {self.host} is not JSON") from error
        if not isinstance(data, dict):
            raise ApiError(f"{self.name}: the response of {self.host} is not a JSON object")
        if data.get("error"):  # some gateways report failures with status 200
            raise self._error(response, body)
        return self._with_own_name(data)

    def _with_own_name(self, data: dict[str, Any]) -> bytes:
        if "model" in data:
            data["model"] = self.name
        return json.dumps(data).encode()

    def _error(self, response: httpx2.Response, body: bytes) -> UpstreamError | ApiError:
        """Returns the other server's error."""
        status, error = response.status_code, _parse_error(body)
        # A refused key is this server's, not the client's: with 401 the client would doubt its own.
        if status == 401:
            return ApiError(
                f"{self.name}: {self.host} refuses this server's key ({error['message']}); "
                f"start this server with the right one in {self._key_variable}"
            )
        if status < 400:
            if status != 200:
                # Redirects are not followed: they could send prompts to a server that the user never chose.
                return ApiError(f"{self.name}: {self.host} responds with status {status}, not with an answer")
            status = 502
        retry_after = response.headers.get("retry-after")
        return UpstreamError(
            status,
            json.dumps({"error": error}).encode(),
            {"retry-after": retry_after} if retry_after else {},
        )

    def _interrupted(self, error: Exception | None) -> ApiError:
        reason = f" ({_describe(error)})" if error else ""
        return ApiError(f"{self.name}: {self.host} broke off in the middle of its answer{reason}; try again")


def _parse_error(body: bytes) -> dict[str, Any]:
    """Returns an error in the API's form, whatever form the body has."""
    text = body.decode(errors="replace").strip()
    try:
        error = json.loads(text)
    except (ValueError, RecursionError):
        error = text
    if isinstance(error, dict):
        error = error.get("error") or error
    if not isinstance(error, dict):
        error = {"message": str(error)[:500]}
    message = error.get("message") or error.get("detail") or "no reason given"
    defaults = {"type": "upstream_error", "param": None, "code": None}
    return defaults | error | {"message": message if isinstance(message, str) else json.dumps(message)}


def _describe(error: Exception) -> str:
    return str(error) or type(error).__name__
