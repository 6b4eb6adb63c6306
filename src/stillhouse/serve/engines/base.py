"""The interface of an inference engine: token ids in, text deltas out.

A client that disconnects frees its slot: closing the iterator of :meth:`Engine.generate` cancels the
generation while it waits for a slot, before the first delta or between two deltas.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from stillhouse.models import NO_PENALTIES, LogitPenalties
from stillhouse.serve.errors import InvalidRequestError

if TYPE_CHECKING:
    from stillhouse.models import PromptEncoder, Sampling, TokenLogprob


@dataclass(frozen=True)
class GenerationRequest:
    """One generation: a prompt and its sampling parameters."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    penalties: LogitPenalties = NO_PENALTIES
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
    stop_sequence: str | None = None
    """The stop sequence that ended the answer, in the last delta. llama.cpp reports none."""


CAPABILITIES = {
    "all_penalties": "repetition_penalty together with presence_penalty or frequency_penalty",
    "echo": "log-probabilities of a prompt; serve its safetensors directory",
    "embed": "embeddings",
    "schema": "answers by a JSON schema",
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

    async def check_schema(self, schema: dict[str, Any]) -> None:
        """Checks that an answer of this engine can follow a schema.

        Raises:
            SchemaError: it cannot.
        """
        ...

    def check_embeddable(self, texts: Sequence[Sequence[int]]) -> None:
        """Raises ContextLengthError if a text is too long for an embedding."""
        ...

    async def embed(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Returns the embedding of each text, with L2 norm 1. Cancelling it stops before the next texts."""
        ...

    async def close(self) -> None:
        """Frees memory; generations in progress end with an error."""
        ...


def require_capability(engine: Engine, model: str, capability: str, param: str) -> None:
    """Raises InvalidRequestError if the engine lacks a capability (a key of `CAPABILITIES`)."""
    if capability not in engine.capabilities:
        raise InvalidRequestError(
            f"{model} does not support {CAPABILITIES[capability]}", param, "unsupported"
        )


async def check_request(engine: Engine, schema: dict[str, Any] | None, penalties: LogitPenalties) -> None:
    """Checks what can only be checked with a loaded engine.

    Raises:
        InvalidRequestError: a bias is for a token that the model does not have, or the engine cannot apply
            these penalties together.
        SchemaError: the engine cannot follow the schema.
    """
    vocab_size = len(engine.prompts.tokenizer)
    if any(token >= vocab_size for token, _ in penalties.bias):
        raise InvalidRequestError(f"token ids must be between 0 and {vocab_size - 1}", "logit_bias")
    counts = penalties.presence or penalties.frequency
    if "all_penalties" not in engine.capabilities and penalties.repetition != 1 and counts:
        raise InvalidRequestError(
            "llama.cpp cannot apply repetition_penalty together with presence_penalty or frequency_penalty; "
            "leave one out, or serve the safetensors directory",
            "repetition_penalty",
            "unsupported",
        )
    if schema is not None:
        await engine.check_schema(schema)
