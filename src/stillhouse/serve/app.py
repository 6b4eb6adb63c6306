"""The server: the OpenAI API's routes over a shelf of models, and the chat page.

What a model does is in engines.py, how an answer is worded in answers.py, who may ask in safety.py.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import struct
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from stillhouse.errors import (
    ApiError,
    CapabilityError,
    ContextLengthError,
    ModelError,
    ModelNotFoundError,
    SchemaError,
    StillhouseError,
)
from stillhouse.serve.chat import Tools, beginning, tools_of, turns
from stillhouse.serve.engine import Engine, Piece, Wish
from stillhouse.serve.model_pool import Shelf
from stillhouse.serve.openapi import description
from stillhouse.serve.request_parsing import (
    Body,
    Refused,
    needs,
    parsed,
    sampling_of,
    schema_of,
    seeded,
    several,
    text_ids,
)
from stillhouse.serve.responses import ChatChoice, Envelope, Tally, TextChoice, TokenNames
from stillhouse.serve.schema import Addressed, ChatRequest, CompletionRequest, EmbeddingRequest
from stillhouse.serve.security import BodyError, Safety, error_body, read_body
from stillhouse.serve.streaming import EventStream, Gone, warn_of_fault, while_connected
from stillhouse.serve.upstream import Upstream, UpstreamError

PAGE = Path(__file__).parent / "page"
PAGE_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}
RETRY_AFTER_S = 2

Handler = Callable[[Request], Awaitable[Response]]


class Server:
    """The routes, for one shelf.

    Args:
        queue: answers under way or waiting, of all models together; more are told to come again (429).
    """

    def __init__(self, shelf: Shelf, *, queue: int) -> None:
        self._shelf, self._queue, self._taken = shelf, queue, 0
        self._names: weakref.WeakKeyDictionary[Any, TokenNames] = weakref.WeakKeyDictionary()
        self._readers: weakref.WeakKeyDictionary[Any, ThreadPoolExecutor] = weakref.WeakKeyDictionary()

    def app(self, *, hosts: Collection[str], api_key: str | None) -> Safety:
        """The ASGI application, with all that stands before it."""

        @contextlib.asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            idle = asyncio.create_task(self._shelf.unload_idle())
            yield
            idle.cancel()
            await self._shelf.close()

        routes = [
            Route("/v1/models", self._answered(self.models), methods=["GET"]),
            Route("/v1/models/{name:path}", self._answered(self.model), methods=["GET"]),
            Route("/v1/chat/completions", self._asked(ChatRequest, self.chat), methods=["POST"]),
            Route(
                "/v1/completions",
                self._asked(CompletionRequest, self.complete),
                methods=["POST"],
            ),
            Route("/v1/embeddings", self._asked(EmbeddingRequest, self.embed), methods=["POST"]),
            Route("/health", self._answered(self.health), methods=["GET"]),
            Route("/openapi.json", self._answered(self.describe), methods=["GET"]),
            Route("/", self._answered(self.page), methods=["GET"]),
            Route("/page/{name}", self._answered(self.page), methods=["GET"]),
        ]
        handlers: Mapping[Any, Any] = {404: _no_route, 405: _no_route}
        return Safety(
            Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers),
            hosts=hosts,
            api_key=api_key,
        )

    async def models(self, request: Request) -> Response:
        """Names of all models."""
        return JSONResponse({"object": "list", "data": [self._model(name) for name in self._shelf.names]})

    async def model(self, request: Request) -> Response:
        """One of them."""
        name = request.path_params["name"]
        if name not in self._shelf.names:
            raise ModelNotFoundError(f"there is no model {name!r} here")
        return JSONResponse(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        listed = {"id": name, "object": "model", "created": 0, "owned_by": "stillhouse"}
        upstream = self._shelf.upstreams.get(name)
        return listed | ({"forwarded_to": upstream.host} if upstream else {})

    async def health(self, request: Request) -> Response:
        """Whether the server is there, and how busy."""
        return JSONResponse({"status": "ok", "answers": self._taken, "queue": self._queue})

    async def page(self, request: Request) -> Response:
        """The chat page and its files; only what is in the package."""
        name = request.path_params.get("name", "index.html")
        place = PAGE / name
        if name not in {file.name for file in PAGE.iterdir()} or place.suffix not in PAGE_TYPES:
            return _no_route(request, None)
        return FileResponse(place, media_type=PAGE_TYPES[place.suffix])

    async def chat(self, request: Request, asked: ChatRequest) -> Response:
        """`POST /v1/chat/completions`."""
        if asked.top_logprobs and not asked.logprobs:
            raise Refused("top_logprobs needs logprobs: true", "top_logprobs")
        tools, schema = await asyncio.to_thread(_forms, asked) if _has_schemas(asked) else _forms(asked)
        messages = turns(asked.messages)

        @contextlib.asynccontextmanager
        async def prepared() -> AsyncIterator[_Work]:
            async with self._shelf.use(asked.model) as engine:
                scores = (asked.top_logprobs or 0) if asked.logprobs else None
                names = self._token_names(engine) if asked.logprobs else None
                begun = await self._read(engine, beginning, engine, asked, messages, tools, schema)
                wishes = [
                    Wish(begun.ids, one, scores, schema=begun.schema, marks=begun.marks)
                    for one in seeded(engine, asked, begun.sampling, begun.ids)
                ]
                choices = [
                    ChatChoice(n, inside=begun.inside, names=names, calls=begun.calls())
                    for n in range(len(wishes))
                ]
                yield _Work(engine, wishes, choices, Tally(len(begun.ids)))

        return await self._respond(
            request, asked, asked.n, prepared, ("chat.completion", "chat.completion.chunk")
        )

    async def complete(self, request: Request, asked: CompletionRequest) -> Response:
        """`POST /v1/completions`."""
        if asked.max_tokens == 0 and not asked.echo:
            raise Refused("max_tokens 0 asks for nothing without echo", "max_tokens")
        prompts = several(asked.prompt)

        @contextlib.asynccontextmanager
        async def prepared() -> AsyncIterator[_Work]:
            async with self._shelf.use(asked.model) as engine:
                sampling = sampling_of(asked, max(1, asked.max_tokens))
                score_prompt = asked.echo and asked.logprobs is not None
                if score_prompt:
                    needs(engine, asked.model, "echo", "echo")
                names = self._token_names(engine) if asked.logprobs is not None else None
                wishes, choices, tokens = [], [], 0
                for prompt in prompts:
                    ids = await self._read(engine, text_ids, engine, prompt)
                    tokens += len(ids)
                    echo = (ids, str(engine.prompts.tokenizer.decode(ids))) if asked.echo else None
                    for one in seeded(engine, asked, sampling, ids):
                        wishes.append(Wish(tuple(ids), one, asked.logprobs, score_prompt))
                        silent = asked.max_tokens == 0
                        choices.append(TextChoice(len(choices), names=names, echo=echo, silent=silent))
                yield _Work(engine, wishes, choices, Tally(tokens))

        return await self._respond(
            request, asked, asked.n * len(prompts), prepared, ("text_completion", "text_completion")
        )

    async def embed(self, request: Request, asked: EmbeddingRequest) -> Response:
        """`POST /v1/embeddings`."""
        if asked.dimensions is not None:
            raise Refused("the number of dimensions cannot be chosen; leave it out", "dimensions")
        texts = several(asked.input)
        with self._places(len(texts)):
            async with self._shelf.use(asked.model) as engine:
                needs(engine, asked.model, "embed", "model")
                texts_ids = [await self._read(engine, text_ids, engine, text) for text in texts]
                vectors = [await engine.embed(ids) for ids in texts_ids]
        tokens = sum(map(len, texts_ids))
        data = [
            {"object": "embedding", "index": n, "embedding": _vector(vector, asked.encoding_format)}
            for n, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": asked.model, "usage": usage})

    async def describe(self, request: Request) -> Response:
        """The OpenAPI description."""
        return JSONResponse(description())

    async def _respond(
        self,
        request: Request,
        asked: ChatRequest | CompletionRequest,
        count: int,
        prepared: Callable[[], contextlib.AbstractAsyncContextManager[_Work]],
        kinds: tuple[str, str],
    ) -> Response:
        """The answer, whole or as a stream; what goes wrong before its first word is an ordinary error."""
        stack = contextlib.AsyncExitStack()
        stack.enter_context(self._places(count))

        async def whole() -> Response:
            work = await stack.enter_async_context(prepared())
            envelope = Envelope(kinds[0], asked.model)
            async for choice, piece in work.pieces():
                choice.add(piece)
            choices = [choice.whole() for choice in work.choices]
            await stack.aclose()
            body = orjson.dumps(envelope.around(choices, usage=work.tally.usage()))
            return Response(body, media_type="application/json")

        async def stream() -> Response:
            work = await stack.enter_async_context(prepared())
            usage = bool(asked.stream_options and asked.stream_options.include_usage)
            events = _events(work, Envelope(kinds[1], asked.model), usage=usage)
            return EventStream(await anext(events), events, stack)

        try:
            return await while_connected(request, stream() if asked.stream else whole())
        except BaseException:
            await stack.aclose()
            raise

    def _asked(self, kind: type[Body], handler: Callable[[Request, Body], Awaitable[Response]]) -> Handler:
        """``handler``, given a body of this ``kind``; one for a model of another server goes there."""

        async def asked(request: Request) -> Response:
            body = await read_body(request.scope, request.receive)
            if self._shelf.upstreams:
                upstream = self._shelf.upstreams.get(parsed(Addressed, body).model)
                if upstream:
                    return await self._forward(request, upstream, body)
            return await handler(request, parsed(kind, body))

        return self._answered(asked)

    async def _forward(self, request: Request, upstream: Upstream, body: bytes) -> Response:
        """Another server's answer; one place, however much it asks for: that server has limits of its own."""
        asking = upstream.ask(request.url.path.removeprefix("/v1"), body)
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(self._places(1))
            answer = await while_connected(request, stack.enter_async_context(asking))
            if isinstance(answer, bytes):
                return Response(answer, media_type="application/json")
            first = await while_connected(request, anext(answer))
            return EventStream(first, answer, stack.pop_all())

    @contextlib.contextmanager
    def _places(self, count: int) -> Any:
        """Takes places in the queue."""
        if self._taken + count > self._queue:
            raise _Busy
        self._taken += count
        try:
            yield
        finally:
            self._taken -= count

    async def _read(self, engine: Engine, work: Callable[..., Any], *arguments: Any) -> Any:
        """What ``work`` makes of a prompt, in a thread of this model's: a long one holds up nobody else."""
        if engine.prompts not in self._readers:
            self._readers[engine.prompts] = ThreadPoolExecutor(1, thread_name_prefix="prompts")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers[engine.prompts], work, *arguments)

    def _token_names(self, engine: Engine) -> TokenNames:
        if engine.prompts not in self._names:
            self._names[engine.prompts] = TokenNames(engine.prompts.tokenizer)
        return self._names[engine.prompts]

    def _answered(self, handler: Handler) -> Handler:
        """``handler``, with every failure in the API's form."""

        async def answered(request: Request) -> Response:
            try:
                return await handler(request)
            except Gone:
                return Response(status_code=499)
            except _Busy:
                return _error(
                    429, f"{self._queue} answers are under way or waiting; come again", code="busy",
                    headers={"retry-after": str(RETRY_AFTER_S)},
                )  # fmt: skip
            except Refused as error:
                return _error(400, error.message, param=error.param, code=error.code)
            except BodyError as error:
                headers = {"connection": "close"}
                return _error(error.status, error.message, headers=headers)
            except UpstreamError as error:
                return Response(
                    error.body, error.status, media_type="application/json", headers=error.headers
                )
            except StillhouseError as error:
                return _stillhouse_error(error)
            except Exception as error:
                warn_of_fault(error, request.url.path)
                return _error(500, "internal error", kind="server_error")

        return answered


class _Work:
    """Wishes of one request, the choices that they grow into, and the count of tokens."""

    def __init__(self, engine: Engine, wishes: Sequence[Wish], choices: Sequence[Any], tally: Tally) -> None:
        self.engine, self.wishes, self.choices, self.tally = engine, wishes, choices, tally

    def pieces(self) -> AsyncIterator[tuple[Any, Piece]]:
        """Pieces of all choices as they come. Closed, it ends all of them."""
        return self._of_one() if len(self.wishes) == 1 else self._of_several()

    async def _of_one(self) -> AsyncIterator[tuple[Any, Piece]]:
        pieces = self.engine.generate(self.wishes[0])
        try:
            async for piece in pieces:
                self.tally.count(piece)
                yield self.choices[0], piece
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]

    async def _of_several(self) -> AsyncIterator[tuple[Any, Piece]]:
        heard: asyncio.Queue[tuple[Any, Piece | BaseException]] = asyncio.Queue()

        async def follow(choice: Any, wish: Wish) -> None:
            pieces = self.engine.generate(wish)
            try:
                async for piece in pieces:
                    heard.put_nowait((choice, piece))
            except Exception as error:
                heard.put_nowait((choice, error))
            finally:
                await pieces.aclose()  # type: ignore[attr-defined]

        tasks = [
            asyncio.create_task(follow(choice, wish))
            for choice, wish in zip(self.choices, self.wishes, strict=True)
        ]
        try:
            left = len(tasks)
            while left:
                choice, piece = await heard.get()
                if isinstance(piece, BaseException):
                    raise piece
                self.tally.count(piece)
                yield choice, piece
                left -= piece.finish_reason is not None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _has_schemas(asked: ChatRequest) -> bool:
    """Whether there is something in a chat whose check may take long."""
    return bool(asked.tools or (asked.response_format and asked.response_format.type != "text"))


def _forms(asked: ChatRequest) -> tuple[Tools, dict[str, Any] | None]:
    """The tools of a chat, and the schema that its answer must follow."""
    tools = tools_of(asked)
    return tools, None if tools.forced else schema_of(asked)


async def _events(work: _Work, envelope: Envelope, *, usage: bool) -> AsyncIterator[bytes]:
    """Server-sent events; an error in mid-answer is the last of them."""
    pieces = work.pieces()
    try:
        begun: set[int] = set()
        async for choice, piece in pieces:
            if isinstance(choice, ChatChoice) and choice.index not in begun:
                begun.add(choice.index)
                yield _event(envelope.around([choice.opening()]))
            for chunk in choice.add(piece):
                yield _event(envelope.around([chunk]))
        if usage:
            yield _event(envelope.around([], usage=work.tally.usage()))
        yield b"data: [DONE]\n\n"
    finally:
        await pieces.aclose()  # type: ignore[attr-defined]


def _event(data: Any) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


class _Busy(Exception):
    """The queue is full."""


def _vector(vector: list[float], form: str) -> Any:
    if form == "base64":
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    return vector


def _error(
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    body = error_body(message, kind, param=param, code=code)
    return Response(body, status_code=status, media_type="application/json", headers=headers)


def _stillhouse_error(error: StillhouseError) -> Response:
    if isinstance(error, ContextLengthError):
        return _error(400, str(error), param="messages", code="context_length_exceeded")
    if isinstance(error, ModelNotFoundError):
        return _error(404, str(error), param="model", code="model_not_found")
    if isinstance(error, SchemaError):
        return _error(400, str(error), param="response_format", code="invalid_schema")
    if isinstance(error, CapabilityError):
        return _error(400, str(error), code="unsupported")
    if isinstance(error, ApiError):
        return _error(502, str(error), kind="upstream_error")
    if isinstance(error, ModelError) and "template" in str(error):
        return _error(400, str(error), param="messages")
    return _error(503, str(error), kind="server_error")


def _no_route(request: Request, error: Any) -> Response:
    status = getattr(error, "status_code", 404)
    return _error(status, f"there is no {request.method} {request.url.path} here", code="not_found")
