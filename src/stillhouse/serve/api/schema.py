"""Request bodies of the OpenAI API, as far as a local model can serve them.

Known fields that change nothing here (`user`, `store`, `service_tier` …) are accepted and ignored, because
clients send them by default. Fields that would change the answer and are not supported are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(max_length=4_000_000)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True)


class Function(_Body):
    """A tool. `strict` has no effect: a forced call always follows `parameters`."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of its arguments; without it, any object is valid."""


class Tool(_Body):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


class CalledFunction(_Body):
    """The tool that was called, and its arguments."""

    name: str
    arguments: Text
    """A JSON object, as text."""


class ToolCall(_Body):
    """A tool call in an earlier answer."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class FunctionName(_Body):
    """The name of a tool."""

    name: str


class ToolName(_Body):
    """The one tool that must be called."""

    type: Literal["function"]
    function: FunctionName


class AddressedBody(_Body):
    """The field that all bodies have: the model."""

    model: str


class Message(_Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[dict[str, Any]] | None = None
    """Text, or parts of type `text`."""
    reasoning_content: Text | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=1000)] | None = None
    """Calls by the assistant."""
    tool_call_id: str | None = None
    """For role `tool`: the call that this is the result of."""


class StreamOptions(_Body):
    """What a stream contains besides the text."""

    include_usage: bool = False


class ResponseFormat(_Body):
    """The required form of an answer."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: dict[str, Any] | None = None


class _SampledBody(_Body):
    """Fields shared by chat and completions."""

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
    # Not supported. Clients often send them with the value that changes nothing, so that value is accepted.
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None


class ChatRequest(_SampledBody):
    """`POST /v1/chat/completions`.

    `temperature` and `top_p` default to less than the API's own 1, at which small models write worse.
    """

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)]
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    """With `json_schema`, the answer follows its `schema` unless it is cut off."""
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolName | None = None
    """`auto` (the default) lets the model choose; `required` or a name forces a call."""
    parallel_tool_calls: bool = True
    """False ends the answer after its first call."""
    reasoning_effort: Annotated[str, Field(max_length=20)] | None = None
    """Passed to the chat template; `none` also turns reasoning off (`enable_thinking`). Without effect if the
    template uses neither."""
    functions: Any = None
    """Refused: send `tools`."""
    function_call: Any = None
    """Refused: send `tool_choice`."""


class CompletionRequest(_SampledBody):
    """`POST /v1/completions`: the prompt as it is, without a chat template."""

    prompt: Text | list[int] | list[Text] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] = 16
    """0 with `echo` returns only the prompt's own log-probabilities."""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool = False
    suffix: Annotated[str, Field(max_length=0)] | None = None


class EmbeddingRequest(_Body):
    """`POST /v1/embeddings`."""

    model: str
    input: Text | list[int] | list[Text] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    """Refused: an embedding has the dimensions of the model's hidden states."""
