"""What every model has in common: the protocol and the values that pass through it.

Nothing here loads anything; torch is named in annotations only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from stillhouse.errors import StillhouseError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from stillhouse.models.chat.template import ChatTemplate
    from stillhouse.models.sampling.next_token import Marker

Message = dict[str, Any]
"""One turn: `role`, `content`, and for assistants optionally `reasoning_content` and `tool_calls` (whose
`function.arguments` are a mapping, as chat templates expect)."""


@dataclass(frozen=True)
class Sampling:
    """How one answer is drawn. Temperature first, then top-k, top-p, min-p, on every backend."""

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Nucleus: the smallest set of tokens with this probability; 1 is all."""
    top_k: int = 0
    """Only the k likeliest tokens; 0 is all. Not sent to APIs unless positive (few take it)."""
    max_tokens: int = 512
    """Longest answer, in tokens."""
    seed: int | None = None
    """Draws of this answer; None takes the model's own seed."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer (and are not part of it)."""
    top_logprobs: int = 0
    """Alternatives a token to ask an API for; 0 is none."""
    min_p: float = 0.0
    """Only tokens of at least this share of the likeliest one's probability; 0 is all. Not sent to APIs
    unless positive (few take it)."""


@dataclass(frozen=True)
class Request:
    """One conversation to be continued by the assistant."""

    id: str
    messages: list[Message]
    sampling: Sampling
    marker: Marker | None = None
    """A watermark for the answer, from a model that can."""


@dataclass(frozen=True)
class Reply:
    """What the model said to one request."""

    text: str
    reasoning: str | None
    """Thoughts that an API reported apart from the text; None where there are none."""
    finish_reason: str
    """`stop` (the model ended), `length` (max_tokens or the context ended it), or the API's own word."""
    prompt_tokens: int
    completion_tokens: int
    request_id: str | None = None
    """The provider's name for this exchange, where it gave one."""
    top_logprobs: list[dict[str, Any]] | None = None
    """One item a token, in the API's form: token, logprob, top_logprobs."""
    model: str | None = None
    """The name under which the provider says it answered."""


@dataclass(frozen=True)
class Capabilities:
    """What a model is able to do; asked, never guessed."""

    generate: bool
    logprobs: bool
    train: bool
    watermark: bool = False
    """Whether answers may carry a watermark (`Request.marker`)."""


class Model(Protocol):
    """Something that answers."""

    reference: str
    fingerprint: str
    """SHA-256 of what answers: of weights and tokenizer files; for an API, of its address and model name."""
    template_hash: str | None
    """SHA-256 of the chat template that is applied here; None where a server applies its own."""
    context_length: int | None
    can: Capabilities
    max_batch: int
    """Requests that one generate() call takes at once."""
    concurrency: int
    """generate() calls that may usefully be under way at once."""
    pushbacks: int
    """How often the other side has asked for patience (429, 503, time-outs); it only grows."""

    async def generate(self, requests: Sequence[Request]) -> list[Reply | StillhouseError]:
        """One result for each request, in order. An item fails alone; an authentication error raises."""
        ...

    async def close(self) -> None:
        """Frees memory, processes and connections."""
        ...


@dataclass(frozen=True)
class ModelInfo:
    """What headers and configuration files tell about a model, without its weights."""

    reference: str
    kind: str
    model_type: str | None
    """transformers' name of the architecture (`llama`, `qwen3`, …)."""
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
    """The model's own name for itself."""
    size_bytes: int | None
    """Bytes of the weight files."""
    config: dict[str, Any] = field(default_factory=dict)
    """transformers' configuration."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Text fields that tell whose model it is, for the terms table."""


@dataclass
class Weights:
    """A model in memory that can be trained."""

    reference: str
    model: PreTrainedModel
    """float32 unless asked otherwise, in eval mode, without quantisation marks."""
    tokenizer: PreTrainedTokenizerFast
    template: ChatTemplate
    fingerprint: str

    @property
    def end_ids(self) -> set[int]:
        """Ids that end an answer: those of the template, and of the model's own generation settings."""
        own = getattr(self.model.generation_config, "eos_token_id", None)
        ends = own if isinstance(own, list) else [own]
        return self.template.end_token_ids(self.tokenizer) | {end for end in ends if isinstance(end, int)}
