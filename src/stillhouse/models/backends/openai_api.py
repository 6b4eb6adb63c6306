"""Models behind an OpenAI-compatible API, through the `openai` client.

The client's own retries are off; `retry` does them all. Answers are not streamed: a body that is cut off is
then an error that the client sees, and the request is repeated. Only `role` and `content` are sent, since
several providers refuse earlier turns with their reasoning.

`api_parameters` builds requests, `api_replies` reads answers, and `server_errors` has the table of failures.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from stillhouse.console import console
from stillhouse.errors import (
    ApiError,
    AuthenticationError,
    ContextLengthError,
    CreditError,
    ModelError,
    ModelNotFoundError,
    PromptRefusedError,
    StillhouseError,
)
from stillhouse.hashing import sha256_text
from stillhouse.models.backends.api_parameters import RequestParameters, parameter_names
from stillhouse.models.backends.api_replies import (
    Completion,
    StreamedPiece,
    read_chunk,
    read_completion,
    read_reply,
)
from stillhouse.models.backends.retry import TemporaryError, retry_after, with_retries
from stillhouse.models.backends.server_errors import OVERLOADED, Cause, ServerError, parse_error
from stillhouse.models.finish_reasons import ERROR, finish_class
from stillhouse.models.reference import Reference
from stillhouse.models.types import Capabilities, Reply, Request, Sampling

if TYPE_CHECKING:
    from openai import AsyncOpenAI

CONCURRENCY = 256
T = TypeVar("T")


class ApiModel:
    """A model behind an OpenAI-compatible API."""

    can = Capabilities(generate=True, logprobs=False, train=False)
    max_batch = 1
    concurrency = CONCURRENCY
    template_hash: str | None = None
    context_length: int | None = None

    def __init__(
        self,
        reference: Reference,
        client: AsyncOpenAI,
        *,
        timeout_s: float,
        retries: int,
        seed: int,
        api_key_env: str,
        variables: Mapping[str, Any] | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        assert reference.url is not None and reference.name is not None
        self.reference, self.name, self.url = reference.text, reference.name, reference.url
        self.fingerprint = sha256_text(f"{reference.url}#{reference.name}")
        self.pushbacks = 0
        self._client, self._timeout_s, self._retries = client, timeout_s, retries
        self._jitter, self._api_key_env = random.Random(seed), api_key_env
        self._parameters = RequestParameters(self.url, self.name, variables or {}, extra_body or {})
        self._reported_trouble = False

    async def generate(self, requests: Sequence[Request]) -> list[Reply | StillhouseError]:
        """One result for each request, in order.

        Raises:
            AuthenticationError: the server refuses the key.
            CreditError: the account has no credit.
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
            AuthenticationError, CreditError, ModelNotFoundError: as :meth:`generate`.
            ApiError: the server does not answer, or breaks off.
            ModelError: it refuses the request.
        """
        import openai
        from httpx2 import HTTPError

        stream = await self._with_retries(lambda: self._open_stream(request))
        if isinstance(stream, StillhouseError):
            raise stream
        try:
            async with stream:
                async for chunk in stream:
                    if piece := read_chunk(chunk):
                        if finish_class(piece.finish_reason) == ERROR:
                            raise ApiError(f"{self.url} broke off in the middle of its answer")
                        yield piece
        except openai.APIStatusError as error:
            problem = parse_error(error.status_code, error.response.text)
            raise self._final(problem, error.response.headers) from error
        except (openai.OpenAIError, HTTPError) as error:
            raise ApiError(f"{self.url} broke off in the middle of its answer: {error}") from error
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ApiError(f"{self.url} streams in an unknown form: {error!r}"[:300]) from error

    def _final(self, problem: ServerError, headers: Any) -> Exception:
        """The error in the middle of a stream, which is not retried."""
        error = self._error(problem, headers, {})
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
        except (AuthenticationError, CreditError, ModelNotFoundError):
            raise
        except StillhouseError as error:
            return error

    def _count_pushback(self) -> None:
        self.pushbacks += 1

    async def _attempt_chat(self, request: Request) -> Reply:
        """One attempt."""

        async def chat(parameters: dict[str, Any]) -> Reply:
            body, headers = await self._post(self._client.chat.completions, parameters)
            return self._reply(request, parameters, body, headers)

        return await self._adapting(request, chat)

    async def _open_stream(self, request: Request) -> Any:
        """One attempt."""

        async def open_stream(parameters: dict[str, Any]) -> Any:
            async with self._errors_of(parameters):
                return await self._client.chat.completions.create(**parameters, stream=True)

        return await self._adapting(request, open_stream)

    async def _adapting(self, request: Request, call: Callable[[dict[str, Any]], Awaitable[T]]) -> T:
        """The result of ``call`` with the request's fields, adapted to what the server refuses."""
        while True:
            parameters = self._parameters.of(request)
            try:
                return await call(parameters)
            except _ParameterRefused as refusal:
                if not self._parameters.adapt(refusal.error, parameters):
                    raise self._parameters.error(refusal.error, parameters) from refusal

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
            parameters |= {"max_tokens": sampling.max_tokens}
            parameters |= {"top_p": sampling.top_p} if sampling.temperature else {}
            parameters |= {} if sampling.seed is None else {"seed": sampling.seed}
        try:
            body, _ = await self._post(self._client.completions, parameters)
            data = self._data(body, parameters)
        except _ParameterRefused as refusal:
            raise self._parameters.error(refusal.error, parameters) from refusal
        try:
            return read_completion(data, prompt)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise TemporaryError(
                f"{self.url} answers in an unknown form: {error!r}: {body[:80]!r}"
            ) from error

    async def _post(self, endpoint: Any, parameters: dict[str, Any]) -> tuple[str, Any]:
        """The body and headers of an answer. Raises TemporaryError for what a retry can fix."""
        async with self._errors_of(parameters):
            raw = await endpoint.with_raw_response.create(**parameters)
        return raw.text, raw.headers

    @contextlib.asynccontextmanager
    async def _errors_of(self, parameters: Mapping[str, Any]) -> AsyncIterator[None]:
        """Converts the errors of a request with these fields, and limits its time."""
        import openai

        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        # First, since openai's time-out is a subclass of its connection error. A slow server is an overloaded
        # one.
        except (TimeoutError, openai.APITimeoutError) as error:
            raise TemporaryError(
                f"{self.url} gave no answer in {self._timeout_s:g} s", pushback=True
            ) from error
        except openai.APIStatusError as error:
            problem = parse_error(error.status_code, error.response.text)
            raise self._error(problem, error.response.headers, parameters) from error
        except openai.APIConnectionError as error:
            what = f"the connection to {self.url} failed: {_root_cause(error)}"
            if not self._reported_trouble and self._retries:
                self._reported_trouble = True
                console.info(f"{what}; trying again")
            raise TemporaryError(what) from error

    def _error(self, error: ServerError, headers: Any, parameters: Mapping[str, Any]) -> Exception:
        """The exception for a server's error, by :mod:`.server_errors`' table."""
        wait = retry_after(headers.get("retry-after"), datetime.datetime.now(datetime.UTC))
        match error.cause(parameter_names(parameters), wait_announced=wait is not None):
            case Cause.CREDIT:
                return CreditError(
                    f"{self.url} ({error.status}): {error.message}",
                    hint="Top up the account and run the same command again.",
                )
            case Cause.KEY:
                return AuthenticationError(
                    f"{self.url} refuses the key: {error.message}",
                    hint=self._key_hint(),
                )
            case Cause.MODEL:
                return ModelNotFoundError(
                    f"{self.url} knows no model {self.name!r}, or no chat is at this address: "
                    f"{error.message}",
                    hint=f"Check the address; {Reference('api', '', url=self.url).endpoint('/models')} may "
                    "list the models' names.",
                )
            case Cause.CONTENT:
                return PromptRefusedError(f"{self.url} refuses the prompt ({error.status}): {error.message}")
            case Cause.CONTEXT:
                return ContextLengthError(
                    f"{self.url}: {error.message}", hint="Shorten the prompt or lower collect.max_tokens."
                )
            case Cause.PARAMETER:
                return _ParameterRefused(error)
            case Cause.TEMPORARY:
                return TemporaryError(
                    f"{self.url} answers {error.status}: {error.message}",
                    wait_s=wait,
                    pushback=error.status in OVERLOADED,
                )
            case Cause.REFUSED:
                return ModelError(f"{self.url} refuses the request ({error.status}): {error.message}")

    def _key_hint(self) -> str:
        """Which environment variable the key comes from, and whether it has one."""
        if os.environ.get(self._api_key_env):
            return f"The key is that in the environment variable {self._api_key_env}; check it."
        return f"The environment variable {self._api_key_env} is not set: export {self._api_key_env}=…"

    def _data(self, body: str, parameters: Mapping[str, Any], headers: Any = None) -> dict[str, Any]:
        """The JSON object in a body."""
        try:
            data = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise TemporaryError(f"{self.url} answers with invalid JSON: {body[:80]!r}") from error
        if not isinstance(data, dict):
            raise TemporaryError(f"{self.url} answers with {type(data).__name__} instead of an object")
        if data.get("error"):  # some gateways report failures with status 200
            raise self._error(_error_inside(data), headers or {}, parameters)
        return data

    def _reply(self, request: Request, parameters: Mapping[str, Any], body: str, headers: Any) -> Reply:
        data = self._data(body, parameters, headers)
        choices = data.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if isinstance(choice, dict) and (
            choice.get("error") or finish_class(str(choice.get("finish_reason"))) == ERROR
        ):
            raise self._error(_error_inside(choice), headers, parameters)
        if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
            raise TemporaryError(f"{self.url} answers without choices")
        not_sent = [
            name for name in ("temperature", "top_p", "seed") if name not in parameter_names(parameters)
        ]
        try:
            return read_reply(request, data, choice, headers, not_sent)
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            # Not retried: the next answer would have the same form, and would be paid for too.
            raise ModelError(f"{self.url} answers in an unknown form: {error}: {body[:80]!r}") from error


class _ParameterRefused(Exception):
    """The server refuses parameters that may be adapted."""

    def __init__(self, error: ServerError) -> None:
        super().__init__(error.message)
        self.error = error


def api_key_missing(reference: Reference, api_key_env: str) -> bool:
    """Whether ``reference`` is an API on another machine and the environment has no key for it."""
    return reference.is_remote and not os.environ.get(api_key_env)


def open_api(
    reference: Reference,
    *,
    api_key_env: str,
    timeout_s: float,
    retries: int,
    seed: int,
    variables: Mapping[str, Any] | None = None,
    extra_body: Mapping[str, Any] | None = None,
) -> ApiModel:
    """A client for ``reference``. Sends no request yet.

    Args:
        variables: of the chat template: `reasoning_effort` is sent as such, others as `chat_template_kwargs`.
        extra_body: further fields of every request; None as a value leaves a field out.

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
    address = urlsplit(reference.url or "")
    query = dict(parse_qsl(address.query))
    client = AsyncOpenAI(
        base_url=address._replace(query="").geturl(),
        api_key=key or "none",
        default_query=query or None,
        # Azure's addresses with a version read a key from this header only.
        default_headers={"api-key": key} if key and "api-version" in query else None,
        max_retries=0,
        timeout=timeout_s,
        # Requests to this machine must not go through a proxy from the environment.
        http_client=DefaultAsyncHttpxClient(timeout=timeout_s, trust_env=reference.is_remote),
    )
    return ApiModel(
        reference,
        client,
        timeout_s=timeout_s,
        retries=retries,
        seed=seed,
        api_key_env=api_key_env,
        variables=variables,
        extra_body=extra_body,
    )


def _error_inside(data: Mapping[str, Any]) -> ServerError:
    """The error inside an answer with status 200; without a status of its own it is the server's failure."""
    error = data.get("error")
    status = error.get("code") if isinstance(error, dict) else None
    if error is None:
        return ServerError(500, f"the answer broke off (finish reason {data.get('finish_reason')!r})")
    return parse_error(status if isinstance(status, int) else 500, json.dumps({"error": error}))


def _root_cause(error: BaseException) -> str:
    """The innermost reason of a failed connection, such as `Connection refused`."""
    reason, seen = error, error
    while (seen := seen.__cause__ or seen.__context__) is not None:
        if str(seen):
            reason = seen
        if isinstance(seen, OSError) and seen.errno:
            # asyncio's own text is "Connect call failed"; errors of name resolution have negative numbers.
            return os.strerror(seen.errno) if seen.errno > 0 else str(seen.strerror)
    return str(reason) or type(reason).__name__
