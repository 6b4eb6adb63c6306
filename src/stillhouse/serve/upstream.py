"""Models that another OpenAI-compatible server has: a request goes on to it, and its answer comes back.

Of a request and of its answer only `model` is understood and changed; what the other server can do is its own
business, and so are its errors. Nothing is asked twice: clients try again by themselves. The client's headers
stay here, its key too. What the other server does with the words, nobody here knows.
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
from stillhouse.serve.request_parsing import Refused

CONNECT_S = 10.0
SILENCE_S = 600.0
"""Seconds without a byte after which an answer is given up; a long prompt takes a while to read."""
KEPT_S = 2.0
"""How long an idle connection is used again: less than the five seconds after which uvicorn closes one."""
_BETWEEN_EVENTS = re.compile(rb"\r?\n\r?\n")
_DONE = b"data: [DONE]"


class UpstreamError(Exception):
    """The other server's own error: status, body in the API's form, and `Retry-After` where it gave one."""

    def __init__(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers


class Upstream:
    """One model of another server; opens a connection when it is first asked.

    Args:
        name: what the model is called here.
        reference: of kind `api`.
        api_key_env: environment variable with the key that the other server wants; empty, none is sent.

    Raises:
        AuthenticationError: no header can carry that key.
    """

    def __init__(self, name: str, reference: Reference, *, api_key_env: str) -> None:
        assert reference.url is not None and reference.name is not None
        address = urlsplit(reference.url)
        self.name = name
        self.host = address.netloc.rpartition("@")[2]
        """Host and port, as they may be shown."""
        self._elsewhere, self._encrypted = reference.is_remote, address.scheme == "https"
        self._url, self._theirs, self._variable = reference.url, reference.name, api_key_env
        key = os.environ.get(api_key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise AuthenticationError(
                f"the key in {api_key_env} has characters that no header can carry",
                hint="Set it again, without line breaks and in ASCII.",
            )
        self._has_key = bool(key)
        self._client = httpx2.AsyncClient(
            headers={"accept-encoding": "identity"} | ({"authorization": f"Bearer {key}"} if key else {}),
            timeout=httpx2.Timeout(SILENCE_S, connect=CONNECT_S, pool=None),
            limits=httpx2.Limits(max_connections=None, keepalive_expiry=KEPT_S),
            # No proxy that the environment names may see what is meant for this machine.
            trust_env=self._elsewhere,
        )

    def announce(self) -> None:
        """Says where the words go."""
        key = f"the key in {self._variable}" if self._has_key else f"no key ({self._variable} is empty)"
        if not self._elsewhere:
            console.info(f"{self.name}: prompts go on to {self.host}, with {key}")
            return
        bare = "" if self._encrypted else ", not encrypted on their way"
        console.warn(f"{self.name}: prompts go to {self.host}, which is another machine{bare}; with {key}")

    @contextlib.asynccontextmanager
    async def ask(self, path: str, body: bytes) -> AsyncIterator[bytes | AsyncIterator[bytes]]:
        """The answer to a request, whole or as events. Left early, it ends the request.

        Args:
            path: below the API's address, such as `/chat/completions`.
            body: the client's, as it came.

        Raises:
            Refused: the body is not JSON.
            UpstreamError: the other server's error.
            ApiError: it gives no answer, or what it says is no answer.
        """
        request = self._client.build_request(
            "POST", self._url + path, content=self._sent(body), headers={"content-type": "application/json"}
        )
        try:
            response = await self._client.send(request, stream=True)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ApiError(
                f"{self.name}: {self.host} gives no answer ({_words(error)}); "
                "see that this server runs there, or ask another model"
            ) from error
        try:
            if response.status_code != 200:
                raise self._refusal(response, await self._all_of(response))
            if response.headers.get("content-type", "").startswith("text/event-stream"):
                yield self._events(response)
            else:
                yield self._whole(response, await self._all_of(response))
        finally:
            await response.aclose()

    def _sent(self, body: bytes) -> bytes:
        try:
            return json.dumps(json.loads(body) | {"model": self._theirs}, allow_nan=False).encode()
        except (ValueError, RecursionError):
            raise Refused("the body is not JSON", None) from None

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def _all_of(self, response: httpx2.Response) -> bytes:
        try:
            return await response.aread()
        except httpx2.HTTPError as error:
            raise self._broken(error) from error

    async def _events(self, response: httpx2.Response) -> AsyncIterator[bytes]:
        """Whole events as they come; ApiError where the last of them is missing."""
        rest, ended = b"", False
        try:
            async for part in response.aiter_bytes():
                *events, rest = _BETWEEN_EVENTS.split(rest + part)
                told = [self._event(event) for event in events]
                ended = ended or any(last for _, last in told)
                if told:
                    yield b"".join(event + b"\n\n" for event, _ in told)
        except httpx2.HTTPError as error:
            if not ended:
                raise self._broken(error) from error
        if rest.strip() == _DONE:
            yield _DONE + b"\n\n"
        elif not ended:
            raise self._broken(None)

    def _event(self, event: bytes) -> tuple[bytes, bool]:
        """An event with the model's name here, and whether none has to follow: the end, or an error."""
        if not event.startswith(b"data:"):
            return event, False
        try:
            data = json.loads(event[5:])
        except (ValueError, RecursionError):
            return event, event.rstrip() == _DONE
        if not isinstance(data, dict):
            return event, False
        return b"data: " + self._renamed(data), bool(data.get("error"))

    def _whole(self, response: httpx2.Response, body: bytes) -> bytes:
        try:
            data = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ApiError(f"{self.name}: {self.host} answers with something that is not JSON") from error
        if not isinstance(data, dict):
            raise ApiError(f"{self.name}: {self.host} answers with JSON that is no object")
        if data.get("error"):  # some gateways report failures with status 200
            raise self._refusal(response, body)
        return self._renamed(data)

    def _renamed(self, data: dict[str, Any]) -> bytes:
        if "model" in data:
            data["model"] = self.name
        return json.dumps(data).encode()

    def _refusal(self, response: httpx2.Response, body: bytes) -> UpstreamError | ApiError:
        """The error that the other server gave. That it refuses our key is none of the client's."""
        status, error = response.status_code, _error(body)
        if status == 401:
            return ApiError(
                f"{self.name}: {self.host} refuses this server's key ({error['message']}); "
                f"start this server with the right one in {self._variable}"
            )
        if status < 400:
            if status != 200:
                return ApiError(f"{self.name}: {self.host} answers with status {status}, not with an answer")
            status = 502
        wait = response.headers.get("retry-after")
        return UpstreamError(
            status, json.dumps({"error": error}).encode(), {"retry-after": wait} if wait else {}
        )

    def _broken(self, error: Exception | None) -> ApiError:
        why = f" ({_words(error)})" if error else ""
        return ApiError(f"{self.name}: {self.host} broke off in the middle of its answer{why}; ask again")


def _error(body: bytes) -> dict[str, Any]:
    """An error body's error in the API's form, whatever its own."""
    text = body.decode(errors="replace").strip()
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        told = text
    if isinstance(told, dict):
        told = told.get("error") or told
    if not isinstance(told, dict):
        told = {"message": str(told)[:500]}
    message = told.get("message") or told.get("detail") or "no reason given"
    kind = {"type": "upstream_error", "param": None, "code": None}
    return kind | told | {"message": message if isinstance(message, str) else json.dumps(message)}


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
