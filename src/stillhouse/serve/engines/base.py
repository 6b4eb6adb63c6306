"""The interface of an inference engine: token ids in, text deltas out.

A client that disconnects frees its slot: closing the iterator of :meth:`Engine.generate` cancels the
generation while it waits for a slot, before the first delta or between two deltas.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from stillhouse.models import PromptEncoder, Sampling, TokenLogprob


@dataclass(frozen=True)
class GenerationRequest:
    """One generation: a prompt and its sampling parameters."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    top_logprobs: int | None = None
    """Number of likeliest tokens to report with each token; 0 reports only the token's own log-probability,
    None reports nothing."""
    score_prompt: bool = False
    json_schema: dict[str, Any] | None = None
    """Schema that the answer must follow, from
    :func:`~stillhouse.models.with_guidance_options`."""
    preserved_tokens: tuple[str, ...] = ()
    """Special tokens that stay in the text, such as the marks around a tool call."""


@dataclass(frozen=True)
class TextDelta:
    """The next part of one generation."""

    text: str = ""
    """Empty in the middle of a character, or while the text may become a stop sequence."""
    tokens: int = 0
    """Number of generated tokens that it covers."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Log-probabilities of these tokens, if requested."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """Log-probabilities of the prompt's tokens, in the first delta, if requested."""
    cached_tokens: int = 0
    """Number of prompt tokens found in the cache, in the first delta."""
    finish_reason: str | None = None
    """`stop` or `length` in the last delta, None before."""


CAPABILITIES = {
    "echo": "log-probabilities of a prompt; serve its safetensors directory",
    "embed": "embeddings",
    "schema": "answers by a JSON schema",
    "tools": "tools: its chat template has none, or writes tool calls in a form that is not supported",
}
"""Optional capability -> how an error message names it."""


class Engine(Protocol):
    """One loaded model."""

    prompts: PromptEncoder
    context_length: int
    capabilities: frozenset[str]
    """A subset of the keys of :data:`CAPABILITIES`."""

    def generate(self, request: GenerationRequest) -> AsyncIterator[TextDelta]:
        """Streams one generation. Closing the iterator cancels it."""
        ...

    async def embed(self, ids: Sequence[int]) -> list[float]:
        """Returns the embedding of one text, with L2 norm 1."""
        ...

    async def close(self) -> None:
        """Frees memory; generations in progress end with an error."""
        ...


def template_capabilities(prompts: PromptEncoder) -> set[str]:
    """Capabilities that depend on the chat template."""
    return {"tools"} if prompts.template.tool_call_format else set()
