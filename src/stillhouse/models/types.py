"""The types that all models share: requests, replies, sampling settings and the `Model` protocol.

Importing this module loads no model and no heavy package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from stillhouse.errors import StillhouseError

if TYPE_CHECKING:
    import numpy as np

Message = dict[str, Any]
"""One turn: `role`, `content`, and for assistants optionally `reasoning_content` and `tool_calls` (whose
`function.arguments` are a mapping, as chat templates expect)."""


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of one answer.

    Every backend applies the temperature first, then top-k, top-p and min-p.
    """

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Nucleus: the smallest set of tokens with this probability; 1 keeps all."""
    top_k: int = 0
    """Keep only the k likeliest tokens; 0 keeps all. Sent to APIs only when positive (few accept it)."""
    max_tokens: int = 512
    """Longest answer, in tokens."""
    seed: int | None = None
    """Seed of this answer; with None, local backends derive one from their own seed and the request's id."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer; they are not part of it."""
    top_logprobs: int = 0
    """Alternatives for each token to request from an API; 0 requests none."""
    min_p: float = 0.0
    """Keep only tokens with at least this share of the likeliest token's probability; 0 keeps all. Sent to
    APIs only when positive (few accept it)."""


@dataclass(frozen=True)
class TokenLogprob:
    """The model's log-probability of one token: natural logarithm, whole vocabulary, temperature 1."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens and their log-probabilities, in descending order."""


class Marker(Protocol):
    """A watermark for one answer. See :class:`stillhouse.watermark.Mark`."""

    def __call__(self, ids: Sequence[int], weights_V: np.ndarray, /) -> np.ndarray:
        """The weights [V] to sample the next token from.

        Args:
            ids: the answer's token ids so far.
            weights_V: float64, of any sum, after temperature, top-k, top-p and min-p.
        """
        ...


class RenderMessages(Protocol):
    """Renders a conversation with a chat template."""

    def __call__(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, **variables: Any
    ) -> str:
        """The conversation as text. Raises ModelError where the template refuses it."""
        ...


@dataclass(frozen=True)
class Request:
    """A conversation that the assistant continues."""

    id: str
    messages: list[Message]
    sampling: Sampling
    marker: Marker | None = None
    """A watermark for the answer; needs `Capabilities.watermark`."""
    api_defaults: tuple[str, ...] = ()
    """Sampling settings (fields of :class:`Sampling`) that an API is not sent: its own defaults apply. Local
    backends use the values in `sampling`."""


@dataclass(frozen=True)
class Reply:
    """A model's answer to one request."""

    text: str
    reasoning: str | None
    """Reasoning that an API returned separately from the text, or that was split off it; None without any."""
    finish_reason: str
    """`stop` (the model ended), `length` (max_tokens or the context ended it), another class of
    :mod:`.finish_reasons`, or the API's own word."""
    prompt_tokens: int
    completion_tokens: int
    request_id: str | None = None
    """The provider's id of this exchange, if it sent one."""
    top_logprobs: list[dict[str, Any]] | None = None
    """One item for each token, in the API's form: token, logprob, top_logprobs."""
    model: str | None = None
    """The model name that the provider reports."""
    not_sent: tuple[str, ...] = ()
    """Sampling settings that an API was not sent: left to its defaults, or refused by it."""


@dataclass(frozen=True)
class Capabilities:
    """What a model can do."""

    generate: bool
    logprobs: bool
    train: bool
    watermark: bool = False
    """Whether answers can carry a watermark (`Request.marker`)."""


class Model(Protocol):
    """A model that generates answers. Each module of `models.backends` implements this protocol."""

    reference: str
    fingerprint: str
    """SHA-256 of the weights and tokenizer files; for an API, of its address and model name."""
    template_hash: str | None
    """SHA-256 of the chat template that is applied here; None where a server applies its own."""
    context_length: int | None
    can: Capabilities
    max_batch: int
    """Requests that one generate() call takes at once."""
    concurrency: int
    """generate() calls that can usefully be in flight at once."""
    pushbacks: int
    """How often the server has asked to slow down (429, 503, time-outs) since the model was opened."""

    async def generate(self, requests: Sequence[Request]) -> list[Reply | StillhouseError]:
        """One result for each request, in order. Requests fail one by one; an authentication error raises."""
        ...

    async def close(self) -> None:
        """Frees memory, processes and connections."""
        ...


@dataclass(frozen=True)
class ModelInfo:
    """A model's metadata, read from headers and configuration files without its weights."""

    reference: str
    kind: str
    model_type: str | None
    """The architecture's name in transformers (`llama`, `qwen3`, …)."""
    parameters: int | None
    """Number of weights; a tied output head counts once."""
    vocab_size: int | None
    """Rows of the embedding, padding included."""
    layers: int | None
    hidden_size: int | None
    context_length: int | None
    tokenizer_hash: str | None
    """SHA-256 over the tokens in id order and the merges; equal for equal tokenizers of one file format."""
    template_hash: str | None
    license: str | None
    name: str | None
    """The model's own name."""
    size_bytes: int | None
    """Bytes of the weight files."""
    config: dict[str, Any] = field(default_factory=dict)
    """transformers' configuration."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Text fields that identify the model's owner, for the terms table."""
