"""The server: the OpenAI API's routes over a shelf of models, and the chat page.

What a model does is in engines.py, how an answer is worded in answers.py, who may ask in safety.py.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import struct
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from .. import __version__
from ..console import console
from ..errors import CapabilityError, ContextLengthError, ModelError, ModelNotFoundError, StillhouseError
from ..models import Request as Asked
from ..models import Sampling
from .answers import ChatChoice, Envelope, Tally, TextChoice, TokenNames
from .engines import Engine, Piece, Wish
from .safety import BodyError, Safety, error_body, read_body
from .schema import ChatRequest, CompletionRequest, EmbeddingRequest, Message
from .shelf import Shelf

PAGE = Path(__file__).parent / "page"
PAGE_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}
RETRY_AFTER_S = 2

Body = TypeVar("Body", bound=BaseModel)
Handler = Callable[[Request], Awaitable[Response]]


class Server:
    """The routes, for one shelf.

    Args:
        queue: answers under way or waiting, of all models together; more are told to come again (429).
    """

    def __init__(self, shelf: Shelf, *, queue: int) -> None:
        self._shelf, self._queue, self._taken = shelf, queue, 0
        self._names: weakref.WeakKeyDictionary[Any, TokenNames] = weakref.WeakKeyDictionary()

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
            Route("/v1/chat/completions", self._answered(self.chat), methods=["POST"]),
            Route("/v1/completions", self._answered(self.complete), methods=["POST"]),
            Route("/v1/embeddings", self._answered(self.embed), methods=["POST"]),
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
        return JSONResponse({"object": "list", "data": [_model(name) for name in self._shelf.names]})

    async def model(self, request: Request) -> Response:
        """One of them."""
        name = request.path_params["name"]
        if name not in self._shelf.names:
            raise ModelNotFoundError(f"there is no model {name!r} here")
        return JSONResponse(_model(name))

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

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        asked = _parsed(ChatRequest, await read_body(request.scope, request.receive))
        if asked.tools and asked.tool_choice != "none":
            raise CapabilityError("tools are not available: this server calls no functions")
        if asked.top_logprobs and not asked.logprobs:
            raise _Refused("top_logprobs needs logprobs: true", "top_logprobs")
        schema = _schema(asked)
        messages = [_message(message) for message in asked.messages]
        limit = asked.max_completion_tokens or asked.max_tokens

        @contextlib.asynccontextmanager
        async def prepared() -> AsyncIterator[_Work]:
            async with self._shelf.use(asked.model) as engine:
                sampling = _sampling(asked, limit or engine.context_length)
                ids = _fitting(engine.prompts.ids(Asked("of this request", messages, sampling)))
                scores = (asked.top_logprobs or 0) if asked.logprobs else None
                names = self._token_names(engine) if asked.logprobs else None
                inside = engine.prompts.opens_thought(ids)
                wishes = [
                    Wish(tuple(ids), one, scores, schema=schema)
                    for one in _seeded(engine, asked, sampling, ids)
                ]
                choices = [ChatChoice(n, inside=inside, names=names) for n in range(len(wishes))]
                yield _Work(engine, wishes, choices, Tally(len(ids)))

        return await self._respond(request, asked, prepared, ("chat.completion", "chat.completion.chunk"))

    async def complete(self, request: Request) -> Response:
        """`POST /v1/completions`."""
        asked = _parsed(CompletionRequest, await read_body(request.scope, request.receive))
        if asked.max_tokens == 0 and not asked.echo:
            raise _Refused("max_tokens 0 asks for nothing without echo", "max_tokens")
        prompts = _several(asked.prompt)

        @contextlib.asynccontextmanager
        async def prepared() -> AsyncIterator[_Work]:
            async with self._shelf.use(asked.model) as engine:
                sampling = _sampling(asked, max(1, asked.max_tokens))
                score_prompt = asked.echo and asked.logprobs is not None
                names = self._token_names(engine) if asked.logprobs is not None else None
                wishes, choices, tokens = [], [], 0
                for prompt in prompts:
                    ids = _ids(engine, prompt)
                    tokens += len(ids)
                    for one in _seeded(engine, asked, sampling, ids):
                        echo = (ids, str(engine.prompts.tokenizer.decode(ids))) if asked.echo else None
                        wishes.append(Wish(tuple(ids), one, asked.logprobs, score_prompt))
                        silent = asked.max_tokens == 0
                        choices.append(TextChoice(len(choices), names=names, echo=echo, silent=silent))
                yield _Work(engine, wishes, choices, Tally(tokens))

        return await self._respond(request, asked, prepared, ("text_completion", "text_completion"))

    async def embed(self, request: Request) -> Response:
        """`POST /v1/embeddings`."""
        asked = _parsed(EmbeddingRequest, await read_body(request.scope, request.receive))
        texts = _several(asked.input)
        with self._places(len(texts)):
            async with self._shelf.use(asked.model) as engine:
                if "embed" not in engine.can:
                    raise CapabilityError(
                        f"{asked.model} gives no embeddings: serve its safetensors directory"
                    )
                several = [_ids(engine, text) for text in texts]
                vectors = [await engine.embed(ids) for ids in several]
        tokens = sum(map(len, several))
        data = [
            {"object": "embedding", "index": n, "embedding": _vector(vector, asked.encoding_format)}
            for n, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": asked.model, "usage": usage})

    async def describe(self, request: Request) -> Response:
        """The OpenAPI description."""
        return JSONResponse(_description())

    async def _respond(
        self,
        request: Request,
        asked: ChatRequest | CompletionRequest,
        prepared: Callable[[], contextlib.AbstractAsyncContextManager[_Work]],
        kinds: tuple[str, str],
    ) -> Response:
        """The answer, whole or as a stream; what goes wrong before its first word is an ordinary error."""
        prompts = len(_several(asked.prompt)) if isinstance(asked, CompletionRequest) else 1
        stack = contextlib.AsyncExitStack()
        stack.enter_context(self._places(asked.n * prompts))
        try:
            work = await _while_connected(request, stack.enter_async_context(prepared()))
            if not asked.stream:
                envelope = Envelope(kinds[0], asked.model)
                await _while_connected(request, _finish(work))
                choices = [choice.whole() for choice in work.choices]
                await stack.aclose()
                return JSONResponse(envelope.around(choices, usage=work.tally.usage()))
            usage = bool(asked.stream_options and asked.stream_options.include_usage)
            events = _events(work, Envelope(kinds[1], asked.model), usage=usage)
            first = await _while_connected(request, anext(events))
        except BaseException:
            await stack.aclose()
            raise
        return _Stream(first, events, stack)

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

    def _token_names(self, engine: Engine) -> TokenNames:
        if engine.prompts not in self._names:
            self._names[engine.prompts] = TokenNames(engine.prompts.tokenizer)
        return self._names[engine.prompts]

    def _answered(self, handler: Handler) -> Handler:
        """``handler``, with every failure in the API's form."""

        async def answered(request: Request) -> Response:
            try:
                return await handler(request)
            except _Gone:
                return Response(status_code=499)
            except _Busy:
                return _error(
                    429, f"{self._queue} answers are under way or waiting; come again", code="busy",
                    headers={"retry-after": str(RETRY_AFTER_S)},
                )  # fmt: skip
            except _Refused as error:
                return _error(400, error.message, param=error.param)
            except BodyError as error:
                headers = {"connection": "close"}
                return _error(error.status, error.message, headers=headers)
            except StillhouseError as error:
                return _stillhouse_error(error)
            except Exception as error:  # a fault of ours: said without what was asked
                console.warn(f"internal error: {type(error).__name__} in {request.url.path}")
                return _error(500, "internal error", kind="server_error")

        return answered


class _Work:
    """Wishes of one request, the choices that they grow into, and the count of tokens."""

    def __init__(self, engine: Engine, wishes: Sequence[Wish], choices: Sequence[Any], tally: Tally) -> None:
        self.engine, self.wishes, self.choices, self.tally = engine, wishes, choices, tally

    async def pieces(self) -> AsyncIterator[tuple[Any, Piece]]:
        """Pieces of all choices as they come. Closed, it ends all of them."""
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


async def _finish(work: _Work) -> None:
    async for choice, piece in work.pieces():
        choice.add(piece)


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
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


class _Stream(Response):
    """A stream of events that ends when the client goes, also while it waits for the next word."""

    media_type = "text/event-stream"

    def __init__(self, first: bytes, events: AsyncIterator[bytes], stack: contextlib.AsyncExitStack) -> None:
        super().__init__(None, headers={"x-accel-buffering": "no"}, media_type=self.media_type)
        del self.headers["content-length"]
        self._first, self._events, self._stack = first, events, stack

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def tell() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            try:
                async for event in self._events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            except Exception as error:
                told = str(error) if isinstance(error, StillhouseError) else "internal error"
                body = b"data: " + error_body(told, "server_error") + b"\n\n"
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            await _first_of(tell(), _disconnected(receive))
        finally:
            await self._events.aclose()  # type: ignore[attr-defined]
            await self._stack.aclose()


class _Gone(Exception):
    """The client left."""


class _Busy(Exception):
    """The queue is full."""


class _Refused(Exception):
    """A request that makes no sense, and the field that is to blame."""

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(message)
        self.message, self.param = message, param


async def _disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _first_of(work: Any, end: Any) -> Any:
    """Awaits both; whichever ends first ends the other. Raises _Gone where that was ``end``."""
    tasks = asyncio.ensure_future(work), asyncio.ensure_future(end)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise _Gone
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _while_connected(request: Request, work: Any) -> Any:
    """The result of ``work``, which is given up when the client goes."""
    return await _first_of(work, _disconnected(request.receive))


def _parsed(kind: type[Body], body: bytes) -> Body:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or None
        message = f"{place}: {first['msg']}" if place else first["msg"]
        raise _Refused(message[:500], place) from None
    except RecursionError:
        raise _Refused("the JSON is nested too deeply", None) from None


def _message(message: Message) -> dict[str, Any]:
    content = message.content
    if isinstance(content, list):
        if any(part.get("type") != "text" or not isinstance(part.get("text"), str) for part in content):
            raise _Refused("only parts of type text are understood", "messages")
        content = "".join(part["text"] for part in content)
    turn = {"role": "system" if message.role == "developer" else message.role, "content": content or ""}
    if message.reasoning_content and message.role == "assistant":
        turn["reasoning_content"] = message.reasoning_content
    return turn


def _sampling(asked: ChatRequest | CompletionRequest, max_tokens: int) -> Sampling:
    stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    return Sampling(
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        min_p=asked.min_p,
        max_tokens=max_tokens,
        stop=tuple(stop for stop in stops if stop),
    )


def _seeded(
    engine: Engine, asked: ChatRequest | CompletionRequest, sampling: Sampling, ids: Sequence[int]
) -> list[Sampling]:
    """Settings of the n choices, each with a seed of its own that fits the context."""
    import dataclasses
    import secrets

    first = secrets.randbits(31) if asked.seed is None else asked.seed
    chat = isinstance(asked, ChatRequest)
    several = []
    for number in range(asked.n):
        one = dataclasses.replace(sampling, seed=(first + number) % 2**31)
        fitted = engine.prompts.sampling(Asked("", [], one), len(ids))
        several.append(fitted if chat else dataclasses.replace(fitted, stop=sampling.stop))
    return several


def _schema(asked: ChatRequest) -> dict[str, Any] | None:
    form = asked.response_format
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return {"type": "object"}
    schema = (form.json_schema or {}).get("schema")
    if not isinstance(schema, dict):
        raise _Refused("json_schema needs a schema", "response_format.json_schema.schema")
    return schema


def _several(given: str | list[Any]) -> list[str] | list[list[int]]:
    """One prompt or many, as many."""
    if isinstance(given, str):
        return [given]
    if not given:
        raise _Refused("there is no text", None)
    return [given] if isinstance(given[0], int) else given


def _ids(engine: Engine, text: str | list[int]) -> list[int]:
    """The ids of a text without a chat template, with the begin token where the model has one."""
    if isinstance(text, str):
        ids = list(engine.prompts.tokenizer.encode(text))
    else:
        ids, size = text, len(engine.prompts.tokenizer)
        if any(not 0 <= token < size for token in ids):
            raise _Refused(f"token ids go from 0 to {size - 1}", "prompt")
    if not ids:
        raise _Refused("the prompt is empty", "prompt")
    if len(ids) >= engine.context_length:
        raise ContextLengthError(
            f"the prompt has {len(ids)} tokens, the model's context {engine.context_length}"
        )
    return ids


def _fitting(ids: list[int] | StillhouseError) -> list[int]:
    if isinstance(ids, StillhouseError):
        raise ids
    if not ids:
        raise _Refused("the conversation is empty", "messages")
    return ids


def _vector(vector: list[float], form: str) -> Any:
    if form == "base64":
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    return vector


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "stillhouse"}


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
    if isinstance(error, CapabilityError):
        return _error(400, str(error), code="unsupported")
    if isinstance(error, ModelError) and "template" in str(error):
        return _error(400, str(error), param="messages")
    return _error(503, str(error), kind="server_error")


def _no_route(request: Request, error: Any) -> Response:
    status = getattr(error, "status_code", 404)
    return _error(status, f"there is no {request.method} {request.url.path} here", code="not_found")


def _description() -> dict[str, Any]:
    """The server in OpenAPI's words; the bodies are those of schema.py."""
    schemas: dict[str, Any] = {}

    def reference(kind: type[BaseModel]) -> dict[str, str]:
        made = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(made.pop("$defs", {}))
        schemas[kind.__name__] = made
        return {"$ref": f"#/components/schemas/{kind.__name__}"}

    def post(kind: type[BaseModel], summary: str) -> dict[str, Any]:
        body = {"required": True, "content": {"application/json": {"schema": reference(kind)}}}
        return {"post": {"summary": summary, "requestBody": body, "responses": _RESPONSES}}

    paths = {
        "/v1/models": {"get": {"summary": "All models", "responses": _RESPONSES}},
        "/v1/chat/completions": post(ChatRequest, "The next turn of a conversation"),
        "/v1/completions": post(CompletionRequest, "How a text goes on"),
        "/v1/embeddings": post(EmbeddingRequest, "Texts as vectors"),
        "/health": {"get": {"summary": "Whether the server is there", "responses": _RESPONSES}},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Stillhouse", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas},
    }


_RESPONSES = {
    "200": {"description": "The answer"},
    "default": {"description": "An error in the OpenAI API's form"},
}
