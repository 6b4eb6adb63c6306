"""Serves a GGUF file with llama.cpp."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from stillhouse.errors import StillhouseError
from stillhouse.serve.engines.base import GenerationRequest, TextDelta, template_capabilities
from stillhouse.serve.engines.mailbox import Mailbox

if TYPE_CHECKING:
    from stillhouse.models import PromptEncoder, TokenLogprob

EMBEDDER_IDLE_S = 300
"""Seconds without an embedding after which the memory that only embeddings need is freed."""


class LlamaEngine:
    """A GGUF file in llama.cpp, which batches sequences itself; each generation runs in its own thread."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.prompts: PromptEncoder = model.prompts
        self.capabilities = frozenset({"embed", "schema", *template_capabilities(self.prompts)})
        self.context_length: int = model.context_length
        self._embedder_timer: asyncio.TimerHandle | None = None
        self._mailbox = Mailbox()

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TextDelta]:
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
            preserved_tokens=request.preserved_tokens,
        )
        try:
            while True:
                messages = [await queue.get()]
                while not queue.empty():
                    messages.append(queue.get_nowait())
                # One delta for all tokens of a round: what follows (JSON, a socket write) costs by the delta.
                if deltas := [message for message in messages if isinstance(message, TextDelta)]:
                    delta = _merge(deltas)
                    yield delta
                    if delta.finish_reason:
                        return
                if isinstance(messages[-1], Exception):
                    raise messages[-1]
        finally:
            cancelled.set()

    async def embed(self, ids: Sequence[int]) -> list[float]:
        """Returns the mean of the last hidden states, with L2 norm 1."""
        self._restart_embedder_timer()
        return await self._model.embed(ids)

    async def close(self) -> None:
        if self._embedder_timer:
            self._embedder_timer.cancel()
        await self._model.close()

    def _restart_embedder_timer(self) -> None:
        if self._embedder_timer:
            self._embedder_timer.cancel()
        loop = asyncio.get_running_loop()
        self._embedder_timer = loop.call_later(EMBEDDER_IDLE_S, self._model.unload_embedder)


def _merge(deltas: Sequence[TextDelta]) -> TextDelta:
    """Joins consecutive deltas of one generation."""
    if len(deltas) == 1:
        return deltas[0]
    return TextDelta(
        "".join(delta.text for delta in deltas),
        tokens=sum(delta.tokens for delta in deltas),
        logprobs=tuple(logprob for delta in deltas for logprob in delta.logprobs),
        cached_tokens=deltas[0].cached_tokens,
        finish_reason=deltas[-1].finish_reason,
    )


def _parse_chunk(chunk: dict[str, Any] | StillhouseError) -> TextDelta | StillhouseError | None:
    """Parses a chunk of llama.cpp's stream; None for progress of the prompt."""
    if isinstance(chunk, StillhouseError):
        return chunk
    if not chunk.get("choices") or "prompt_progress" in chunk:
        return None
    choice = chunk["choices"][0]
    token_logprobs = (choice.get("logprobs") or {}).get("content")
    finish_reason = choice.get("finish_reason")
    prompt_details = chunk.get("usage", {}).get("prompt_tokens_details", {})
    return TextDelta(
        choice["text"],
        tokens=0 if finish_reason else 1,
        logprobs=_parse_logprobs(token_logprobs) if token_logprobs else (),
        cached_tokens=prompt_details.get("cached_tokens", 0),
        finish_reason=finish_reason,
    )


def _parse_logprobs(token_logprobs: Sequence[dict[str, Any]]) -> tuple[TokenLogprob, ...]:
    from stillhouse.models import TokenLogprob

    return tuple(
        TokenLogprob(
            entry["id"],
            entry["logprob"],
            tuple((top["id"], top["logprob"]) for top in entry.get("top_logprobs") or ()),
        )
        for entry in token_logprobs
    )
