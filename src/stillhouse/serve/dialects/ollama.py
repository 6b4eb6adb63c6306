"""`/api/chat`, `/api/generate`, `/api/embed`, `/api/tags`, `/api/show` and `/api/version`: Ollama's API.

https://docs.ollama.com/api. Models cannot be pulled, made or deleted here, and keep
the context length that the server loaded them with (`num_ctx` has no effect).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import orjson
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stillhouse import __version__
from stillhouse.errors import ModelNotFoundError
from stillhouse.models import parse_reference
from stillhouse.serve.api.request_parsing import parse_body
from stillhouse.serve.api.schema import (
    CompletionRequest,
    EmbeddingRequest,
    RequestBody,
    RequestPart,
    Text,
)
from stillhouse.serve.context import ServerContext
from stillhouse.serve.dialects.base import answer_chat, arguments_of, object_of, refuse
from stillhouse.serve.endpoints.completions import create_completion
from stillhouse.serve.endpoints.embeddings import create_embeddings
from stillhouse.serve.endpoints.forward import forward
from stillhouse.serve.error_forms import ollama_error
from stillhouse.serve.errors import InvalidRequestError

if TYPE_CHECKING:
    from stillhouse.models import ModelInfo

RAW_TOKENS = 512
"""Limit of a raw answer if the request sets no `num_predict`: without a template, a model need not end."""
_NO_IMAGES = "the models here read no images"
# option -> field of a chat completion
_OPTIONS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "seed": "seed",
    "stop": "stop",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
# options that say how a model is loaded, which is this server's own affair
_WITHOUT_EFFECT = frozenset(
    "num_ctx num_keep num_batch num_gpu main_gpu num_thread low_vram use_mmap use_mlock numa f16_kv "
    "vocab_only logits_all embedding_only".split()
)
_NEUTRAL = {"mirostat": 0, "typical_p": 1.0, "tfs_z": 1.0, "repeat_last_n": 64}


class OllamaMessage(RequestPart):
    """One message of a conversation."""

    role: str
    content: Text | None = None
    thinking: Text | None = None
    images: list[Any] | None = None
    """Refused."""
    tool_calls: Annotated[list[dict[str, Any]], Field(max_length=1000)] | None = None
    tool_name: str | None = None


class _OllamaRequest(RequestBody):
    """Fields that chat and generate share."""

    model: str
    stream: bool | None = None
    """True, if it is absent."""
    format: str | dict[str, Any] | None = None
    """`json`, or a JSON schema."""
    options: dict[str, Any] | None = None
    think: bool | str | None = None
    """False turns reasoning off where the chat template can; a word is passed on as its effort."""
    logprobs: bool | None = None
    """Refused."""
    keep_alive: Any = None
    """No effect: the server decides when it unloads a model."""


class OllamaChatRequest(_OllamaRequest):
    """`POST /api/chat`."""

    messages: Annotated[list[OllamaMessage], Field(max_length=10_000)] = Field(default_factory=list)
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None


class OllamaGenerateRequest(_OllamaRequest):
    """`POST /api/generate`."""

    prompt: Text = ""
    system: Text | None = None
    raw: bool | None = None
    """The prompt as it is, without a chat template."""
    suffix: Text | None = None
    """Refused, as are `images`, `template` and `context`."""
    images: list[Any] | None = None
    template: Text | None = None
    context: list[int] | None = None


class OllamaEmbedRequest(RequestBody):
    """`POST /api/embed`."""

    model: str
    input: Text | list[Text]
    options: dict[str, Any] | None = None
    """No effect on embeddings."""
    truncate: bool | None = None
    """No effect: a text that is too long is an error."""
    dimensions: int | None = None
    """Refused."""


class OllamaShowRequest(RequestBody):
    """`POST /api/show`."""

    verbose: bool | None = None
    """No effect."""
    model: str | None = None
    name: str | None = None
    """The older name of `model`."""


async def ollama_chat(context: ServerContext, request: Request, body: OllamaChatRequest) -> Response:
    """Generates the next turn of a conversation."""
    model = _own_name(context, body.model)
    form = OllamaAnswer(body.model, is_chat=True)
    if not body.messages:
        return JSONResponse(form.loaded())
    chat = _sampling(body) | {
        "model": model,
        "messages": _messages(body.messages),
        "tools": body.tools or None,
    }
    return await answer_chat(context, request, chat, form)


async def ollama_generate(context: ServerContext, request: Request, body: OllamaGenerateRequest) -> Response:
    """Answers one prompt."""
    refuse(
        body,
        images=_NO_IMAGES,
        suffix="there is no model here that fills in the middle",
        template="the model's own template cannot be replaced",
        context="this server keeps no context; send the conversation to /api/chat",
    )
    model = _own_name(context, body.model)
    form = OllamaAnswer(body.model, is_chat=False)
    if not body.prompt:
        return JSONResponse(form.loaded())
    if body.raw:
        return await _raw(context, request, body, model, form)
    messages = [{"role": "system", "content": body.system}] if body.system else []
    messages.append({"role": "user", "content": body.prompt})
    return await answer_chat(context, request, _sampling(body) | {"model": model, "messages": messages}, form)


async def ollama_embed(context: ServerContext, request: Request, body: OllamaEmbedRequest) -> Response:
    """Returns one vector for each text."""
    refuse(body, dimensions="the number of dimensions cannot be chosen")
    started = time.perf_counter_ns()
    model = _own_name(context, body.model)
    wanted = orjson.dumps({"model": model, "input": body.input})
    if upstream := context.pool.upstreams.get(model):
        response = await forward(context, request, upstream, wanted, "/embeddings")
    else:
        response = await create_embeddings(context, request, parse_body(EmbeddingRequest, wanted))
    answer = orjson.loads(response.body)
    return JSONResponse(
        {
            "model": body.model,
            "embeddings": [entry["embedding"] for entry in answer["data"]],
            "total_duration": time.perf_counter_ns() - started,
            "load_duration": 0,
            "prompt_eval_count": answer["usage"]["prompt_tokens"],
        }
    )


async def ollama_tags(context: ServerContext, request: Request) -> Response:
    """Lists all models."""
    listed = [_listed(context, name, await _describe(context, name)) for name in context.pool.names]
    return JSONResponse({"models": listed})


async def ollama_show(context: ServerContext, request: Request, body: OllamaShowRequest) -> Response:
    """Describes one model."""
    name = _own_name(context, body.model or body.name or "")
    info = await _describe(context, name)
    shown = _listed(context, name, info)
    architecture = shown["details"]["family"]
    model_info = {
        "general.architecture": architecture,
        "general.parameter_count": info and info.parameters,
        f"{architecture}.context_length": info and info.context_length,
        f"{architecture}.embedding_length": info and info.hidden_size,
        f"{architecture}.block_count": info and info.layers,
    }
    return JSONResponse(
        {
            "modelfile": f"FROM {name}",
            "parameters": "",
            "template": "",
            "license": (info and info.license) or "",
            "details": shown["details"],
            "model_info": {key: value for key, value in model_info.items() if value is not None},
            "capabilities": await _capabilities(context, name),
            "modified_at": shown["modified_at"],
        }
    )


async def ollama_version(context: ServerContext, request: Request) -> Response:
    """Returns this program's version."""
    return JSONResponse({"version": __version__})


def _own_name(context: ServerContext, name: str) -> str:
    """The model's name here; `name:latest` is `name`, as in Ollama.

    Raises:
        ModelNotFoundError: there is no model of this name.
    """
    own_name = name if name in context.pool.names else name.removesuffix(":latest")
    if own_name not in context.pool.names:
        raise ModelNotFoundError(f"there is no model {name!r} here")
    return own_name


def _sampling(body: _OllamaRequest) -> dict[str, Any]:
    """The fields of a chat completion that do not depend on the kind of the prompt.

    Raises:
        InvalidRequestError: an option that would change the answer cannot be followed.
    """
    refuse(body, logprobs="log-probabilities come from /v1/chat/completions")
    fields: dict[str, Any] = {"stream": body.stream is not False}
    for name, value in (body.options or {}).items():
        if name in _OPTIONS:
            fields[_OPTIONS[name]] = value
        elif name == "num_predict":
            fields["max_tokens"] = None if value in (-1, -2) else value  # -1 and -2: no limit
        elif name not in _WITHOUT_EFFECT and value not in (None, _NEUTRAL.get(name)):
            raise InvalidRequestError(
                f"the option {name} cannot be followed; leave it out", f"options.{name}"
            )
    if body.think is False:
        fields["reasoning_effort"] = "none"
    elif isinstance(body.think, str):
        fields["reasoning_effort"] = body.think
    if isinstance(body.format, dict):
        fields["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": body.format},
        }
    elif body.format == "json":
        fields["response_format"] = {"type": "json_object"}
    elif body.format:
        raise InvalidRequestError("format must be json or a JSON schema", "format")
    return fields


def _messages(messages: list[OllamaMessage]) -> list[dict[str, Any]]:
    """Messages in the OpenAI API's form, which gives each tool call an id."""
    converted: list[dict[str, Any]] = []
    unanswered: list[tuple[str, str]] = []
    for number, message in enumerate(messages):
        if message.images:
            raise InvalidRequestError(_NO_IMAGES, f"messages.{number}.images")
        one: dict[str, Any] = {"role": message.role, "content": message.content or ""}
        if message.thinking:
            one["reasoning_content"] = message.thinking
        if message.tool_calls:
            one["tool_calls"] = []
            for call in message.tool_calls:
                function = object_of(call.get("function"))
                identity = f"call_{number}_{len(one['tool_calls'])}"
                unanswered.append((str(function.get("name")), identity))
                arguments = json.dumps(function.get("arguments") or {})
                called = {"name": function.get("name"), "arguments": arguments}
                one["tool_calls"].append({"id": identity, "type": "function", "function": called})
        if message.role == "tool" and unanswered:
            named = (at for at, (name, _) in enumerate(unanswered) if name == message.tool_name)
            one["tool_call_id"] = unanswered.pop(next(named, 0))[1]
        converted.append(one)
    return converted


async def _raw(
    context: ServerContext, request: Request, body: OllamaGenerateRequest, model: str, form: OllamaAnswer
) -> Response:
    """Continues a text without a chat template."""
    fields = _sampling(body) | {"model": model, "prompt": body.prompt, "stream": False}
    fields["max_tokens"] = fields.get("max_tokens") or RAW_TOKENS
    completion = orjson.dumps({name: value for name, value in fields.items() if value is not None})
    if upstream := context.pool.upstreams.get(model):
        response = await forward(context, request, upstream, completion, "/completions")
    else:
        response = await create_completion(context, request, parse_body(CompletionRequest, completion))
    answer = orjson.loads(response.body)
    for choice in answer["choices"]:
        choice["message"] = {"role": "assistant", "content": choice["text"]}
    whole = form.whole(answer)
    if body.stream is False:
        return JSONResponse(whole)
    return Response(orjson.dumps(whole) + b"\n", media_type=form.media_type)


class OllamaAnswer:
    """An answer as lines of JSON: parts of a message, then one with its counts and times in nanoseconds."""

    media_type = "application/x-ndjson"

    def __init__(self, model: str, *, is_chat: bool) -> None:
        self._model, self._is_chat = model, is_chat
        self._started = time.perf_counter_ns()
        self._first: int | None = None
        self._calls: list[dict[str, Any]] = []
        self._finish = "stop"
        self._usage: dict[str, Any] = {}

    def loaded(self) -> dict[str, Any]:
        """The answer to a request without a prompt, which Ollama's clients send to load a model."""
        return self._line("", done=True, done_reason="load")

    def whole(self, completion: dict[str, Any]) -> dict[str, Any]:
        """Returns the answer."""
        choice = completion["choices"][0]
        message = choice["message"]
        self._finish = choice["finish_reason"]
        self._usage = completion.get("usage") or {}
        calls = message.get("tool_calls") or ()
        return self._line(
            message.get("content") or "",
            thinking=message.get("reasoning_content"),
            calls=[(call["function"]["name"], call["function"].get("arguments")) for call in calls],
            **self._last(),
        )

    def begin(self) -> Iterator[bytes]:
        """There is nothing before the first part."""
        return iter(())

    def add(self, chunk: dict[str, Any]) -> Iterator[bytes]:
        """Translates one chunk. A tool call is sent whole, when it is complete."""
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices") or ():
            delta = choice["delta"]
            thoughts = delta.get("reasoning_content")
            if delta.get("content") or thoughts:
                self._first = self._first or time.perf_counter_ns()
                yield _json_line(self._line(delta.get("content") or "", thinking=thoughts))
            for call in delta.get("tool_calls") or ():
                function = call.get("function") or {}
                if call.get("id"):
                    self._calls.append({"name": function.get("name"), "arguments": ""})
                self._calls[-1]["arguments"] += function.get("arguments") or ""
            self._finish = choice.get("finish_reason") or self._finish

    def end(self) -> Iterator[bytes]:
        """Sends the tool calls, and the line with the counts."""
        if self._calls:
            calls = [(call["name"], call["arguments"]) for call in self._calls]
            yield _json_line(self._line("", calls=calls))
        yield _json_line(self._line("", **self._last()))

    def fail(self, message: str) -> Iterator[bytes]:
        """Ends the stream with an error."""
        yield _json_line(ollama_error(message))

    def _line(
        self,
        text: str,
        *,
        thinking: str | None = None,
        calls: list[tuple[str, str | None]] | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        line: dict[str, Any] = {"model": self._model, "created_at": _timestamp(time.time())}
        if self._is_chat:
            message: dict[str, Any] = {"role": "assistant", "content": text}
            line["message"] = message
            if calls:
                message["tool_calls"] = [
                    {"function": {"name": name, "arguments": arguments_of(arguments)}}
                    for name, arguments in calls
                ]
            if thinking:
                message["thinking"] = thinking
        else:
            line["response"] = text
            if thinking:
                line["thinking"] = thinking
        return {**line, "done": False, **more}

    def _last(self) -> dict[str, Any]:
        end = time.perf_counter_ns()
        first = self._first or end
        return {
            "done": True,
            "done_reason": "length" if self._finish == "length" else "stop",
            "total_duration": end - self._started,
            "load_duration": 0,
            "prompt_eval_count": self._usage.get("prompt_tokens", 0),
            "prompt_eval_duration": first - self._started,
            "eval_count": self._usage.get("completion_tokens", 0),
            "eval_duration": end - first,
        }


def _json_line(data: dict[str, Any]) -> bytes:
    return orjson.dumps(data) + b"\n"


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


async def _describe(context: ServerContext, name: str) -> ModelInfo | None:
    """The metadata of the model's files; None for a model of another server. Read in a thread."""
    from stillhouse.models import describe

    reference = context.pool.references.get(name)
    return await asyncio.to_thread(describe, reference) if reference else None


def _listed(context: ServerContext, name: str, info: ModelInfo | None) -> dict[str, Any]:
    upstream = context.pool.upstreams.get(name)
    details = {
        "parent_model": "",
        "format": "gguf" if info and info.kind in ("gguf", "embedded") else "safetensors",
        "family": (info and info.model_type) or "unknown",
        "families": [(info and info.model_type) or "unknown"],
        "parameter_size": _size(info.parameters) if info and info.parameters else "",
        "quantization_level": "",
    }
    listed = {
        "name": name,
        "model": name,
        "modified_at": _timestamp(_modified(context, name)),
        "size": (info and info.size_bytes) or 0,
        "digest": "",
        "details": details,
    }
    return listed | ({"remote_host": upstream.host} if upstream else {})


def _modified(context: ServerContext, name: str) -> float:
    """When the model's file, or its directory's configuration, was written; 0 where there is none here."""
    reference = context.pool.references.get(name)
    path = parse_reference(reference).path if reference else None
    return 0 if path is None else (path / "config.json" if path.is_dir() else path).stat().st_mtime


def _size(parameters: int) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"


async def _capabilities(context: ServerContext, name: str) -> list[str]:
    """What the model can do; one whose template knows no tools gets them by a prompt."""
    if name in context.pool.upstreams:
        return ["completion"]
    async with context.pool.use(name) as engine:
        return ["completion", "tools", *(["embedding"] if "embed" in engine.capabilities else [])]
