"""What clients may ask: the bodies of the OpenAI API's requests, as far as a local model can serve them.

Fields that the API knows and that change nothing here (`user`, `store`, `service_tier` …) are taken and
ignored, as clients send them unasked. Fields that would change the answer and cannot be served are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(max_length=4_000_000)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Addressed(_Body):
    """What every body says: who is asked."""

    model: str


class Message(_Body):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[dict[str, Any]] | None = None
    """Text, or parts of type `text`."""
    reasoning_content: Text | None = None


class StreamOptions(_Body):
    """What a stream tells besides the text."""

    include_usage: bool = False


class ResponseFormat(_Body):
    """The form that an answer must have."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: dict[str, Any] | None = None


class _Sampled(_Body):
    """What chat and completions share."""

    model: str
    n: Annotated[int, Field(ge=1, le=16)] = 1
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[str, Field(max_length=1000)] | Annotated[list[str], Field(max_length=16)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None


class ChatRequest(_Sampled):
    """`POST /v1/chat/completions`.

    Temperature and top_p are lower than the API's own defaults of 1: small models speak better so.
    """

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)]
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None


class CompletionRequest(_Sampled):
    """`POST /v1/completions`: the prompt as it is, without a chat template."""

    prompt: Text | list[int] | list[Text] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] = 16
    """0 with `echo`: only the prompt's own log-probabilities."""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool = False
    suffix: Annotated[str, Field(max_length=0)] | None = None


class EmbeddingRequest(_Body):
    """`POST /v1/embeddings`."""

    model: str
    input: Text | list[int] | list[Text] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
