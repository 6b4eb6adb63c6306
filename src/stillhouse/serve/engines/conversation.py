"""Streams the next answer of a conversation in this process, without a server: `still chat` and `still ask`.

Local models answer through the server's engines, and an API through its client in
:mod:`stillhouse.models.backends.openai_api`. Nothing is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.util
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from stillhouse.console import console
from stillhouse.errors import ChatTemplateError, ModelError, StillhouseError
from stillhouse.serve.engines.base import GenerationRequest

if TYPE_CHECKING:
    from stillhouse.models import Message, Sampling
    from stillhouse.models.backends.openai_api import ApiModel
    from stillhouse.serve.engines.base import Engine

TextKind = Literal["content", "reasoning"]


@dataclass
class ChatAnswer:
    """An answer that grows while it streams."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    """`stop`, `length`, or an API's own value; None while it streams, and after an interruption."""
    prompt_tokens: int | None = None
    """None where an API does not report it."""
    completion_tokens: int | None = None
    """None where an API does not report it."""

    def add(self, kind: TextKind, text: str) -> None:
        """Appends the next piece of text."""
        if kind == "content":
            self.text += text
        else:
            self.reasoning += text

    @property
    def message(self) -> Message:
        """The answer as a message of the conversation."""
        message: Message = {"role": "assistant", "content": self.text}
        return message | ({"reasoning_content": self.reasoning} if self.reasoning else {})


class ChatModel(Protocol):
    """A model that streams answers to conversations."""

    context_length: int | None
    """Tokens of prompt and answer together; None where an API does not say."""

    def stream(
        self, messages: Sequence[Message], sampling: Sampling, answer: ChatAnswer
    ) -> AsyncIterator[tuple[TextKind, str]]:
        """Yields the next answer in pieces and adds them to ``answer``. Closing the iterator cancels it.

        Raises:
            ContextLengthError: the conversation is longer than the model's context.
            ModelError: the chat template refuses the conversation.
            ApiError: the server does not answer.
        """
        ...

    async def close(self) -> None:
        """Frees the model."""
        ...


async def open_chat_model(reference: str, *, api_key_env: str = "OPENAI_API_KEY") -> ChatModel:
    """Opens the model that ``reference`` names; loading takes seconds to minutes.

    Args:
        api_key_env: environment variable with the key of an `api:` model.

    Raises:
        StillhouseError: as :func:`stillhouse.models.load_weights` and :func:`stillhouse.models.open_model`.
    """
    from stillhouse.models import open_model, parse_reference

    if parse_reference(reference).kind == "api":
        model: Any = open_model(reference, api_key_env=api_key_env, retries=1)
        return _ApiChat(model)
    return _EngineChat(reference, await asyncio.to_thread(_open_engine, reference))


def _open_engine(reference: str) -> Engine:
    from stillhouse.models import load_weights, parse_reference
    from stillhouse.serve.engines.open import open_engine, torch_engine

    if parse_reference(reference).is_gguf and importlib.util.find_spec("xllamacpp") is None:
        # The same weights, slower, where llama.cpp is not installed.
        return torch_engine(load_weights(reference), slots=1)
    return open_engine(reference, slots=1)


class _EngineChat:
    def __init__(self, reference: str, engine: Engine) -> None:
        self._engine = engine
        self.context_length: int | None = engine.context_length
        if not engine.prompts.template.declared:
            console.warn(
                f"{reference} declares no chat template; prompts are plain text with User: and Assistant:"
            )

    async def stream(
        self, messages: Sequence[Message], sampling: Sampling, answer: ChatAnswer
    ) -> AsyncIterator[tuple[TextKind, str]]:
        from stillhouse.models import ReasoningStream

        prompts = self._engine.prompts
        ids = await asyncio.to_thread(self._encode, messages, sampling)
        sampling = dataclasses.replace(
            prompts.fit_to_context(sampling, len(ids)),
            stop=(*sampling.stop, *prompts.template.stops),
            seed=secrets.randbits(31) if sampling.seed is None else sampling.seed,
        )
        answer.prompt_tokens, answer.completion_tokens = len(ids), 0
        reasoning = ReasoningStream(inside=prompts.ends_in_reasoning(ids))
        deltas: Any = self._engine.generate(GenerationRequest(tuple(ids), sampling))
        async with contextlib.aclosing(deltas):
            async for delta in deltas:
                answer.completion_tokens += delta.tokens
                for kind, text in reasoning.add(delta.text, end=delta.finish_reason is not None):
                    answer.add(kind, text)
                    yield kind, text
                answer.finish_reason = delta.finish_reason

    def _encode(self, messages: Sequence[Message], sampling: Sampling) -> list[int]:
        from stillhouse.models import Request

        ids = self._engine.prompts.encode(Request("of this conversation", list(messages), sampling))
        if isinstance(ids, ChatTemplateError) and messages[0]["role"] == "system":
            raise ModelError(str(ids), hint="If its template has no system prompt, omit the system prompt.")
        if isinstance(ids, StillhouseError):
            raise ids
        return ids

    async def close(self) -> None:
        await self._engine.close()


class _ApiChat:
    context_length: int | None = None

    def __init__(self, model: ApiModel) -> None:
        self._model = model

    async def stream(
        self, messages: Sequence[Message], sampling: Sampling, answer: ChatAnswer
    ) -> AsyncIterator[tuple[TextKind, str]]:
        from stillhouse.models import ReasoningStream, Request

        pieces: Any = self._model.stream(Request("of this conversation", list(messages), sampling))
        # Text before any reasoning of its own may still begin with a `<think>` block.
        parser, separate = ReasoningStream(inside=False), False
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                separate = separate or bool(piece.reasoning)
                answer.prompt_tokens = piece.prompt_tokens or answer.prompt_tokens
                answer.completion_tokens = piece.completion_tokens or answer.completion_tokens
                answer.finish_reason = piece.finish_reason or answer.finish_reason
                parts: list[tuple[TextKind, str]] = []
                if piece.reasoning:
                    parts.append(("reasoning", piece.reasoning))
                if separate and piece.text:
                    parts.append(("content", piece.text))
                if not separate:
                    parts += parser.add(piece.text)
                for kind, text in parts:
                    answer.add(kind, text)
                    yield kind, text
        for kind, text in [] if separate else parser.add("", end=True):
            answer.add(kind, text)
            yield kind, text

    async def close(self) -> None:
        await self._model.close()
