"""Serves a GGUF file with llama.cpp."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillhouse.errors import SchemaError, StillhouseError
from stillhouse.serve.engines.base import GenerationRequest, TextDelta
from stillhouse.serve.engines.detokenizer import REPLACEMENT, TextBuilder
from stillhouse.serve.engines.hidden_tokens import TokenTable, recover, spellings
from stillhouse.serve.engines.mailbox import Mailbox

if TYPE_CHECKING:
    from stillhouse.models import PromptEncoder, TokenLogprob

EMBEDDER_IDLE_S = 300
"""Seconds without an embedding after which the memory that only embeddings need is freed."""
KNOWN_SCHEMAS = 256
"""JSON schemas of which is remembered whether llama.cpp follows them."""
COMPLETING_TOKENS = 8
"""Tokens after the last requested one that may complete its character, to find out which token it was."""


class LlamaEngine:
    """A GGUF file in llama.cpp, which batches sequences itself; each generation runs in its own thread."""

    capabilities = frozenset({"embed", "schema"})

    def __init__(self, model: Any) -> None:
        self._model = model
        self.prompts: PromptEncoder = model.prompts
        self.context_length: int = model.context_length
        self._embedder_timer: asyncio.TimerHandle | None = None
        self._mailbox = Mailbox()
        self._follows: dict[str, bool] = {}
        """JSON schema -> whether llama.cpp follows it."""

    def generate(self, request: GenerationRequest) -> AsyncIterator[TextDelta]:
        """Streams one generation; with log-probabilities token by token."""
        return self._text_deltas(request) if request.top_logprobs is None else self._token_deltas(request)

    async def check_schema(self, schema: dict[str, Any]) -> None:
        """Checks that llama.cpp itself follows a schema."""
        key = json.dumps(schema)
        if key not in self._follows:
            if len(self._follows) >= KNOWN_SCHEMAS:
                self._follows.pop(next(iter(self._follows)))
            self._follows[key] = await asyncio.to_thread(self._model.follows, schema)
        if not self._follows[key]:
            names = await asyncio.to_thread(self._unknown_formats, schema)
            reason = f"format {', '.join(names)}; leave that out, or" if names else "simplify it, or"
            raise SchemaError(
                f"llama.cpp cannot follow the JSON schema: {reason} serve the safetensors model"
            )

    def check_embeddable(self, texts: Sequence[Sequence[int]]) -> None:
        """Raises ContextLengthError if a text is too long for an embedding."""
        for ids in texts:
            self._model.check_embeddable(ids)

    async def embed(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Returns the mean of each text's last hidden states, with L2 norm 1."""
        embeddings = []
        for ids in texts:
            self._restart_embedder_timer()
            embeddings.append(await self._model.embed(ids))
        return embeddings

    async def close(self) -> None:
        if self._embedder_timer:
            self._embedder_timer.cancel()
        await self._model.close()

    async def _text_deltas(self, request: GenerationRequest) -> AsyncIterator[TextDelta]:
        """Yields the text as llama.cpp writes it."""
        counted = 0
        async with contextlib.aclosing(self._rounds(request)) as rounds:
            async for chunks in rounds:
                # One delta for all chunks of a round: what follows (JSON, a socket write) costs by the delta.
                text, last = "".join(chunk.text for chunk in chunks), chunks[-1]
                before = chunks[-2].drawn if len(chunks) > 1 else counted
                if last.finish_reason and last.drawn > before:
                    text += REPLACEMENT  # the answer ends inside a character, which llama.cpp leaves out
                yield TextDelta(
                    text,
                    tokens=last.drawn - counted,
                    cached_tokens=0 if counted else last.cached_tokens,
                    finish_reason=last.finish_reason,
                )
                counted = last.drawn

    async def _token_deltas(self, request: GenerationRequest) -> AsyncIterator[TextDelta]:
        """Yields the text token by token, with the log-probability of each."""
        text = TextBuilder(self.prompts.tokenizer, request.sampling.stop, shown=request.preserved_tokens)
        tokens = self._tokens(request)
        previous: _DrawnToken | None = None
        count = 0
        try:
            async for token in tokens:
                reason = token.finish_reason or ("length" if count == request.sampling.max_tokens else None)
                if previous or reason:
                    token_id = previous.logprob.id if previous and previous.logprob else None
                    part, finish_reason = text.add(token_id, reason)
                    yield TextDelta(
                        part,
                        tokens=1 if previous else 0,
                        logprobs=(previous.logprob,) if previous and previous.logprob else (),
                        cached_tokens=token.cached_tokens if count < 2 else 0,
                        finish_reason=finish_reason,
                        stop_sequence=text.stop_sequence,
                    )
                    if finish_reason:
                        return
                previous, count = token, count + 1
        finally:
            await tokens.aclose()

    async def _tokens(self, request: GenerationRequest) -> AsyncGenerator[_DrawnToken]:
        """Yields every token of an answer, also those that end inside a character, then the finish reason."""
        table = await asyncio.to_thread(lambda: self._token_table)
        # Stop sequences are found here, because llama.cpp holds back the tokens that may become one.
        sampling = dataclasses.replace(
            request.sampling, stop=(), max_tokens=request.sampling.max_tokens + COMPLETING_TOKENS
        )
        ids, before, all_known = list(request.prompt_ids), b"", True
        prompt_length, top = len(ids), request.top_logprobs or 0
        rounds = self._rounds(
            dataclasses.replace(request, sampling=sampling, preserved_tokens=tuple(table.special))
        )
        try:
            async for chunk in _each(rounds):
                hidden = chunk.drawn - (len(ids) - prompt_length) - (chunk.logprob is not None)
                visible = table.spelling(chunk.logprob.id) if chunk.logprob else None
                found: list[TokenLogprob] = []
                if hidden > 0 and all_known and visible and chunk.spelled.endswith(visible):
                    spelled = chunk.spelled.removesuffix(visible)
                    candidates = spellings(table, before, spelled, hidden)
                    found = await recover(candidates, ids, top, self._next_logprobs)
                drawn: list[TokenLogprob | None] = [*(found or [None] * max(0, hidden))]
                all_known = all_known and None not in drawn
                if chunk.logprob:
                    # llama.cpp reports at least one alternative.
                    drawn.append(dataclasses.replace(chunk.logprob, top=chunk.logprob.top[:top]))
                for logprob in drawn:
                    yield _DrawnToken(logprob, None, chunk.cached_tokens)
                    ids.append(logprob.id if logprob else 0)
                before = (before + chunk.spelled)[-3:]
                if chunk.finish_reason:
                    yield _DrawnToken(None, chunk.finish_reason, chunk.cached_tokens)
        finally:
            await rounds.aclose()

    @functools.cached_property
    def _token_table(self) -> TokenTable:
        return TokenTable(self.prompts.tokenizer)

    async def _next_logprobs(self, ids: Sequence[int], count: int) -> list[tuple[int, float]]:
        return await asyncio.to_thread(self._model.next_token_logprobs, ids, count)

    async def _rounds(self, request: GenerationRequest) -> AsyncGenerator[list[_Chunk]]:
        """Yields the chunks of a generation, as many at once as have arrived."""
        queue = self._mailbox.open_queue()
        cancelled = threading.Event()

        def on_chunk(chunk: dict[str, Any] | StillhouseError) -> bool:
            """Passes a chunk to the loop; returning True makes llama.cpp stop."""
            # llama.cpp also calls back while it reads the prompt, so a cancelled request stops there too.
            if not cancelled.is_set() and (message := _parse_chunk(chunk)):
                self._mailbox.send(queue, message)
            return cancelled.is_set()

        self._model.stream(
            request.prompt_ids,
            request.sampling,
            on_chunk,
            top_logprobs=request.top_logprobs,
            schema=request.json_schema,
            penalties=request.penalties,
            preserved_tokens=request.preserved_tokens,
        )
        try:
            while True:
                messages = [await queue.get()]
                while not queue.empty():
                    messages.append(queue.get_nowait())
                chunks = [message for message in messages if isinstance(message, _Chunk)]
                if chunks:
                    yield chunks
                    if chunks[-1].finish_reason:
                        return
                if isinstance(messages[-1], Exception):
                    raise messages[-1]
        finally:
            cancelled.set()

    def _unknown_formats(self, schema: Any) -> list[str]:
        """Formats in a schema that llama.cpp does not follow."""
        return sorted(
            name for name in _formats(schema) if not self._model.follows({"type": "string", "format": name})
        )

    def _restart_embedder_timer(self) -> None:
        if self._embedder_timer:
            self._embedder_timer.cancel()
        loop = asyncio.get_running_loop()
        self._embedder_timer = loop.call_later(EMBEDDER_IDLE_S, self._model.unload_embedder)


@dataclass(frozen=True)
class _Chunk:
    """A chunk of llama.cpp's stream."""

    text: str
    drawn: int
    """Tokens drawn so far, hidden ones too."""
    logprob: TokenLogprob | None = None
    spelled: bytes = b""
    """With ``logprob``: the bytes since the chunk before, those of hidden tokens included."""
    cached_tokens: int = 0
    finish_reason: str | None = None


@dataclass(frozen=True)
class _DrawnToken:
    """One token of an answer; None where it could not be recovered, and for the end of the answer."""

    logprob: TokenLogprob | None
    finish_reason: str | None = None
    cached_tokens: int = 0


async def _each(rounds: AsyncIterator[list[_Chunk]]) -> AsyncIterator[_Chunk]:
    async for chunks in rounds:
        for chunk in chunks:
            yield chunk


def _parse_chunk(chunk: dict[str, Any] | StillhouseError) -> _Chunk | StillhouseError | None:
    """Parses a chunk of llama.cpp's stream; None for progress of the prompt."""
    if isinstance(chunk, StillhouseError):
        return chunk
    if not chunk.get("choices") or "prompt_progress" in chunk:
        return None
    choice = chunk["choices"][0]
    entries = (choice.get("logprobs") or {}).get("content")
    return _Chunk(
        choice["text"],
        chunk["timings"]["predicted_n"],
        logprob=_parse_logprob(entries[0]) if entries else None,
        spelled=bytes(entries[0]["bytes"]) if entries else b"",
        cached_tokens=chunk["timings"].get("cache_n", 0),
        finish_reason=choice.get("finish_reason"),
    )


def _parse_logprob(entry: dict[str, Any]) -> TokenLogprob:
    from stillhouse.models import TokenLogprob

    return TokenLogprob(
        entry["id"],
        entry["logprob"],
        tuple((top["id"], top["logprob"]) for top in entry.get("top_logprobs") or ()),
    )


def _formats(schema: Any) -> set[str]:
    """The formats of strings in a schema."""
    if isinstance(schema, list):
        return set().union(*map(_formats, schema)) if schema else set()
    if not isinstance(schema, dict):
        return set()
    own = {schema["format"]} if isinstance(schema.get("format"), str) else set[str]()
    return own.union(*map(_formats, schema.values())) if schema else own
