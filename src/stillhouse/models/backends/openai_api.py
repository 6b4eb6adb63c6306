"""Models behind an OpenAI-compatible API, through the `openai` client.

The client's own retries are off; `retry` does them all. Answers are not streamed: a body that is cut off is
then an error that the client sees, and the request is repeated. Only `role` and `content` are sent, since
several providers refuse earlier turns with their reasoning.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from stillhouse.errors import (
    ApiError,
    AuthenticationError,
    ContextLengthError,
    ModelError,
    ModelNotFoundError,
    StillhouseError,
)
from stillhouse.hashing import sha256_text
from stillhouse.models.backends.retry import TemporaryError, retry_after, with_retries
from stillhouse.models.chat.reasoning import split_reasoning
from stillhouse.models.reference import Reference
from stillhouse.models.types import Capabilities, Reply, Request, Sampling

if TYPE_CHECKING:
    from openai import AsyncOpenAI

CONCURRENCY = 256
_OVERLOADED = (429, 503, 529)
_TRANSIENT = (408, 409, 425, *_OVERLOADED)
_CONTEXT_ERRORS = (
    "context_length",
    "context length",
    "context window",
    "context size",
    "maximum context",
    "too long",
)
_CHARACTERS_PER_TOKEN = 4

T = TypeVar("T")


@dataclass(frozen=True)
class Completion:
    """The continuation of a text, without a chat template."""

    text: str
    """The generated text; with echo, the prompt as the server read it."""
    logps: list[float | None] | None
    """Log-probabilities of the text's tokens in nats; None where the server sends none. A token's is None for
    the first one, which follows nothing, and where the server sends null."""
    tokens: int
    """Prompt and generated tokens, as the provider counts them."""


@dataclass(frozen=True)
class StreamedPiece:
    """The next piece of an answer that an API streams."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    """In one of the last pieces; None before."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Both 0 in pieces without a usage report."""


class ApiModel:
    """A model behind an OpenAI-compatible API."""

    can = Capabilities(generate=True, logprobs=False, train=False)
    max_batch = 1
    concurrency = CONCURRENCY
    template_hash: str | None = None
    context_length: int | None = None

    def __init__(
        self, reference: Reference, client: AsyncOpenAI, *, timeout_s: float, retries: int, seed: int
    ) -> None:
        assert reference.url is not None and reference.name is not None
        self.reference, self.name, self.url = reference.text, reference.name, reference.url
        self.fingerprint = sha256_text(f"{reference.url}#{reference.name}")
        self.pushbacks = 0
        self._client, self._timeout_s, self._retries = client, timeout_s, retries
        self._jitter = random.Random(seed)

    async def generate(self, requests: Sequence[Request]) -> list[Reply | StillhouseError]:
        """One result for each request, in order.

        Raises:
            AuthenticationError: the server refuses the key.
            ModelNotFoundError: the server does not know the model or the address.
        """
        return list(await asyncio.gather(*map(self._one, requests)))

    async def complete(
        self, prompt: str, sampling: Sampling, *, echo: bool = False
    ) -> Completion | StillhouseError:
        """Continues a text, without a chat template (`POST /completions`).

        Args:
            echo: generate nothing; return the log-probabilities of ``prompt`` itself.

        Raises:
            AuthenticationError, ModelNotFoundError: as :meth:`generate`.
        """
        return await self._with_retries(lambda: self._attempt_completion(prompt, sampling, echo))

    async def stream(self, request: Request) -> AsyncIterator[StreamedPiece]:
        """Yields one answer in pieces as they arrive; closing the iterator cancels the request.

        Opening the stream is retried; a stream that breaks off is an error, because its text was used.

        Raises:
            AuthenticationError, ModelNotFoundError: as :meth:`generate`.
            ApiError: the server does not answer, or breaks off.
            ModelError: it refuses the request.
        """
        import openai
        from httpx2 import HTTPError

        parameters = self._parameters(request) | {"stream": True}
        stream = await self._with_retries(lambda: self._open_stream(parameters))
        if isinstance(stream, StillhouseError):
            raise stream
        try:
            async with stream:
                async for chunk in stream:
                    if piece := _piece(chunk):
                        yield piece
        except openai.APIStatusError as error:
            raise self._final(error.status_code, error.response.text, error.response.headers) from error
        except (openai.OpenAIError, HTTPError) as error:
            raise ApiError(f"{self.url} broke off in the middle of its answer: {error}") from error
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ApiError(f"{self.url} streams in an unknown form: {error!r}"[:300]) from error

    async def _open_stream(self, parameters: dict[str, Any]) -> Any:
        """One attempt."""
        import openai

        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._client.chat.completions.create(**parameters)
        except (TimeoutError, openai.APITimeoutError) as error:
            raise TemporaryError(f"{self.url} gave no answer in {self._timeout_s:g} s") from error
        except openai.APIStatusError as error:
            raise self._status_error(
                error.status_code, error.response.text, error.response.headers
            ) from error
        except openai.APIConnectionError as error:
            raise TemporaryError(
                f"the connection to {self.url} failed: {error.__cause__ or error}"
            ) from error

    def _final(self, status: int, body: str, headers: Any) -> Exception:
        """The error for a status in the middle of a stream, which is not retried."""
        error = self._status_error(status, body, headers)
        return ApiError(error.what) if isinstance(error, TemporaryError) else error

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def _one(self, request: Request) -> Reply | StillhouseError:
        return await self._with_retries(lambda: self._attempt_chat(request))

    async def _with_retries(self, call: Callable[[], Awaitable[T]]) -> T | StillhouseError:
        """The result of ``call`` after retries, or its error."""
        try:
            return await with_retries(
                call,
                retries=self._retries,
                jitter=self._jitter,
                on_pushback=self._count_pushback,
            )
        except (AuthenticationError, ModelNotFoundError):
            raise
        except StillhouseError as error:
            return error

    def _count_pushback(self) -> None:
        self.pushbacks += 1

    async def _attempt_chat(self, request: Request) -> Reply:
        """One attempt."""
        body, headers = await self._post(self._client.chat.completions, self._parameters(request))
        return self._reply(request, body, headers)

    async def _attempt_completion(self, prompt: str, sampling: Sampling, echo: bool) -> Completion:
        """One attempt."""
        parameters: dict[str, Any] = {
            "model": self.name,
            "prompt": prompt,
            "temperature": sampling.temperature,
        }
        if echo:
            parameters |= {"echo": True, "logprobs": 0, "max_tokens": 0}
        else:
            parameters |= {"top_p": sampling.top_p, "max_tokens": sampling.max_tokens, "seed": sampling.seed}
        body, _ = await self._post(self._client.completions, parameters)
        data = self._data(body)
        try:
            return _completion(data, prompt)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise TemporaryError(
                f"{self.url} answers in an unknown form: {error!r}: {body[:80]!r}"
            ) from error

    async def _post(self, endpoint: Any, parameters: dict[str, Any]) -> tuple[str, Any]:
        """The body and headers of an answer. Raises TemporaryError for what a retry can fix."""
        import openai

        try:
            async with asyncio.timeout(self._timeout_s):
                raw = await endpoint.with_raw_response.create(**parameters)
        # First, since openai's time-out is a subclass of its connection error. A slow server is an overloaded
        # one.
        except (TimeoutError, openai.APITimeoutError) as error:
            raise TemporaryError(
                f"{self.url} gave no answer in {self._timeout_s:g} s", pushback=True
            ) from error
        except openai.APIStatusError as error:
            raise self._status_error(
                error.status_code, error.response.text, error.response.headers
            ) from error
        except openai.APIConnectionError as error:
            raise TemporaryError(
                f"the connection to {self.url} failed: {error.__cause__ or error}"
            ) from error
        return raw.text, raw.headers

    def _parameters(self, request: Request) -> dict[str, Any]:
        sampling = request.sampling
        # OpenAI's newer models know only the new name, most compatible servers only the old one.
        limit = "max_completion_tokens" if urlsplit(self.url).hostname == "api.openai.com" else "max_tokens"
        parameters: dict[str, Any] = {
            "model": self.name,
            "messages": [{"role": m["role"], "content": m.get("content") or ""} for m in request.messages],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            limit: sampling.max_tokens,
        }
        if sampling.seed is not None:
            parameters["seed"] = sampling.seed
        if sampling.stop:
            parameters["stop"] = list(sampling.stop)
        if sampling.top_logprobs:
            parameters |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
        extra = {"top_k": sampling.top_k, "min_p": sampling.min_p}
        if any(extra.values()):
            parameters["extra_body"] = {name: value for name, value in extra.items() if value}
        return parameters

    def _status_error(self, status: int, body: str, headers: Any) -> Exception:
        """The error for a status other than 200."""
        message, code = _error_message(body)
        if status in (401, 403):
            return AuthenticationError(
                f"{self.url} refuses the key: {message}",
                hint="Check the key in the environment variable that the recipe names.",
            )
        if status == 404:
            return ModelNotFoundError(
                f"{self.url} knows no model {self.name!r}: {message}",
                hint=f"See {self.url}/models for its names.",
            )
        # Before the check for 429, the status of this error, too: waiting brings no credit.
        if code == "insufficient_quota":
            return ModelError(f"{self.url}: {message}", hint="The account has no credit left.")
        if status in _TRANSIENT or status >= 500:
            wait = retry_after(headers.get("retry-after"), datetime.datetime.now(datetime.UTC))
            return TemporaryError(
                f"{self.url} answers {status}: {message}", wait_s=wait, pushback=status in _OVERLOADED
            )
        if status == 413 or any(phrase in f"{code} {message}".lower() for phrase in _CONTEXT_ERRORS):
            return ContextLengthError(
                f"{self.url}: {message}", hint="Shorten the prompt or lower collect.max_tokens."
            )
        return ModelError(f"{self.url} refuses the request ({status}): {message}")

    def _data(self, body: str, headers: Any = None) -> dict[str, Any]:
        """The JSON object in a body."""
        try:
            data = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise TemporaryError(f"{self.url} answers with invalid JSON: {body[:80]!r}") from error
        if not isinstance(data, dict):
            raise TemporaryError(f"{self.url} answers with {type(data).__name__} instead of an object")
        if error := data.get("error"):  # some gateways report failures with status 200
            status = error.get("code") if isinstance(error, dict) else None
            raise self._status_error(status if isinstance(status, int) else 500, body, headers or {})
        return data

    def _reply(self, request: Request, body: str, headers: Any) -> Reply:
        data = self._data(body, headers)
        choices = data.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
            raise TemporaryError(f"{self.url} answers without choices")
        try:
            return _from_choice(request, data, choice, headers)
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise TemporaryError(f"{self.url} answers in an unknown form: {error}: {body[:80]!r}") from error


def api_key_missing(reference: Reference, api_key_env: str) -> bool:
    """Whether ``reference`` is an API on another machine and the environment has no key for it."""
    return reference.is_remote and not os.environ.get(api_key_env)


def open_api(
    reference: Reference, *, api_key_env: str, timeout_s: float, retries: int, seed: int
) -> ApiModel:
    """A client for ``reference``. Sends no request yet.

    Raises:
        AuthenticationError: no key in the environment, and the address is not this machine's.
    """
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    key = os.environ.get(api_key_env)
    if api_key_missing(reference, api_key_env):
        raise AuthenticationError(
            f"no API key: the environment variable {api_key_env} is empty",
            hint=f"export {api_key_env}=…, or name another variable in teacher.api_key_env.",
        )
    client = AsyncOpenAI(
        base_url=reference.url,
        api_key=key or "none",
        max_retries=0,
        timeout=timeout_s,
        # Requests to this machine must not go through a proxy from the environment.
        http_client=DefaultAsyncHttpxClient(timeout=timeout_s, trust_env=reference.is_remote),
    )
    return ApiModel(reference, client, timeout_s=timeout_s, retries=retries, seed=seed)


def _from_choice(request: Request, data: dict[str, Any], choice: dict[str, Any], headers: Any) -> Reply:
    """The answer with the types of a corpus. Raises ValueError or TypeError where the server sends others."""
    message = choice["message"]
    # A refusal is an answer like any other: filters decide what to do with it.
    text = _text(message.get("content")) or _text(message.get("refusal")) or ""
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if not isinstance(reasoning, str):
        text, reasoning = split_reasoning(text)
    usage = data.get("usage") or {}
    prompt_characters = sum(len(m.get("content") or "") for m in request.messages)
    answer_characters = len(text) + len(reasoning or "")
    return Reply(
        text=text,
        reasoning=reasoning,
        finish_reason=_name(choice.get("finish_reason")) or "unknown",
        # Budgets need a number even from servers that report none.
        prompt_tokens=_count(usage.get("prompt_tokens")) or -(-prompt_characters // _CHARACTERS_PER_TOKEN),
        completion_tokens=_count(usage.get("completion_tokens"))
        or -(-answer_characters // _CHARACTERS_PER_TOKEN),
        request_id=headers.get("x-request-id") or _name(data.get("id")),
        top_logprobs=(choice.get("logprobs") or {}).get("content"),
        model=_name(data.get("model")),
    )


def _piece(chunk: Any) -> StreamedPiece | None:
    """The piece in a chunk of a stream; None where it has no content."""
    usage, choice = getattr(chunk, "usage", None), chunk.choices[0] if chunk.choices else None
    if choice is None and usage is None:
        return None
    delta = getattr(choice, "delta", None)
    reasoning = getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None)
    return StreamedPiece(
        text=_text(getattr(delta, "content", None)) or _text(getattr(delta, "refusal", None)) or "",
        reasoning=reasoning if isinstance(reasoning, str) else "",
        finish_reason=_name(getattr(choice, "finish_reason", None)),
        prompt_tokens=_count(getattr(usage, "prompt_tokens", 0)),
        completion_tokens=_count(getattr(usage, "completion_tokens", 0)),
    )


def _completion(data: dict[str, Any], prompt: str) -> Completion:
    """The first choice of a text completion. Raises LookupError, TypeError or ValueError without one."""
    choice, usage = data["choices"][0], data.get("usage") or {}
    values = (choice.get("logprobs") or {}).get("token_logprobs")
    logps = None if values is None else [None if value is None else float(value) for value in values]
    text = _text(choice.get("text")) or ""
    return Completion(
        text, logps, _count(usage.get("total_tokens")) or -(-len(prompt + text) // _CHARACTERS_PER_TOKEN)
    )


def _text(value: Any) -> str | None:
    if not isinstance(value, str | None):
        raise TypeError(f"the content is not text but {value!r:.60}")
    return value


def _name(value: Any) -> str | None:
    """A name as text, whatever JSON type the server sends."""
    return None if value is None else str(value)


def _count(value: Any) -> int:
    """Tokens as a number that a corpus can hold; 0 where the server sends none."""
    count = int(value or 0)
    if not 0 <= count < 2**31:
        raise ValueError(f"{count} tokens")
    return count


def _error_message(body: str) -> tuple[str, str]:
    """Message and code of an error body in any of the usual forms."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return body.strip()[:200] or "no reason given", ""
    if isinstance(error, dict):
        return str(error.get("message") or error), str(error.get("code") or error.get("type") or "")
    return str(error), ""
