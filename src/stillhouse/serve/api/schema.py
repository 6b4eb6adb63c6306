"""Request bodies of the OpenAI API, with the fields of other servers that this one honours.

``fields.py`` says what happens to fields that are not declared here. null stands for a field's default
everywhere.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

Text = Annotated[str, Field(max_length=4_000_000)]
JsonSchema = dict[str, Any]


class RequestPart(BaseModel):
    """An object inside a body. Clients replay what they received, so further fields are ignored."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return (
            {key: item for key, item in value.items() if item is not None}
            if isinstance(value, dict)
            else value
        )


class RequestBody(RequestPart):
    """A whole body; ``fields.py`` checks its further fields."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)


class Function(RequestPart):
    """A tool. `strict` has no effect: a forced call always follows `parameters`."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: Text | None = None
    parameters: JsonSchema | None = None
    """JSON schema of its arguments; without it, any object is valid."""


class Tool(RequestPart):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


class CalledFunction(RequestPart):
    """The tool that was called, and its arguments."""

    name: str
    arguments: Text = ""
    """A JSON object, as text; empty for no arguments."""


class ToolCall(RequestPart):
    """A tool call in an earlier answer."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class FunctionName(RequestPart):
    """The name of a tool."""

    name: str


class ToolName(RequestPart):
    """The one tool that must be called."""

    type: Literal["function"]
    function: FunctionName


class AddressedBody(RequestPart):
    """The field that all bodies have: the model."""

    model: str


class Message(RequestPart):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[dict[str, Any]] | None = None
    """Text, or parts of type `text`."""
    refusal: Text | None = None
    """Stands for `content` where that is absent."""
    reasoning_content: Annotated[
        Text | None, Field(validation_alias=AliasChoices("reasoning_content", "reasoning"))
    ] = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=1000)] | None = None
    """Calls by the assistant."""
    tool_call_id: str | None = None
    """For role `tool`: the call that this is the result of."""
    prefix: bool = False
    """True in the last message, an assistant's: as `continue_final_message`. `partial` is another name."""
    partial: bool = False
    function_call: Any = None
    """Refused: send `tool_calls`."""


class StreamOptions(RequestPart):
    """What a stream contains besides the text."""

    include_usage: bool = False


class ResponseFormat(RequestPart):
    """The required form of an answer."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: dict[str, Any] | None = None
    """For type `json_schema`: an object with the field `schema`."""
    schema_: Annotated[JsonSchema | None, Field(alias="schema")] = None
    """For type `json_object`: a schema that the object must follow."""


class StructuredOutputs(RequestPart):
    """vLLM's form of `response_format`."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    json_: Annotated[JsonSchema | Text | None, Field(alias="json")] = None
    """A JSON schema, also as text."""
    json_object: bool = False


class Thinking(RequestPart):
    """Whether the model reasons before it answers."""

    type: Literal["enabled", "disabled"]


class SampledBody(RequestBody):
    """Fields shared by chat and completions."""

    model: str
    n: Annotated[int, Field(ge=1, le=16)] = 1
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] = 0
    """0 or -1 keeps all tokens."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[str, Field(max_length=1000)] | Annotated[list[str], Field(max_length=16)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Subtracted from a token's logit once for each time that it is in the answer."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Subtracted from the logits of all tokens that are in the answer."""
    repetition_penalty: Annotated[
        float,
        Field(gt=0, le=10, validation_alias=AliasChoices("repetition_penalty", "repeat_penalty")),
    ] = 1.0
    """Divides the positive logits, and multiplies the negative ones, of all tokens in prompt or answer.
    `repeat_penalty` is another name."""
    logit_bias: Annotated[
        dict[
            Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")], Annotated[float, Field(ge=-100, le=100)]
        ],
        Field(max_length=1024),
    ] = {}
    """Token id -> what is added to its logit, -100 to 100."""
    response_format: ResponseFormat | None = None
    """With `json_schema`, the answer follows its `schema` unless it is cut off."""
    structured_outputs: StructuredOutputs | None = None
    """vLLM's form of `response_format`."""
    guided_json: JsonSchema | Text | None = None
    """An older form of vLLM: the schema, also as text."""
    json_schema: JsonSchema | None = None
    """llama.cpp's form of `response_format`: the schema."""


class ChatRequest(SampledBody):
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
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolName | None = None
    """`auto` (the default) lets the model choose; `required` or a name forces a call."""
    parallel_tool_calls: bool = True
    """False ends the answer after its first call."""
    reasoning_effort: Annotated[str, Field(max_length=20)] | None = None
    """Passed to the chat template; `none` also turns reasoning off (`enable_thinking`). Without effect if the
    template uses neither."""
    chat_template_kwargs: dict[str, Any] = {}
    """Variables for the chat template, such as `enable_thinking`; refused if it does not use them."""
    enable_thinking: bool | None = None
    """As `chat_template_kwargs.enable_thinking`."""
    thinking: Thinking | None = None
    """As `enable_thinking`, in another form."""
    continue_final_message: bool = False
    """Continues the last message, which must be an assistant's, instead of beginning another."""
    add_generation_prompt: bool = True
    """False is valid only with `continue_final_message`, which implies it."""
    functions: Any = None
    """Refused: send `tools`."""
    function_call: Any = None
    """Refused: send `tool_choice`."""


class CompletionRequest(SampledBody):
    """`POST /v1/completions`: the prompt as it is, without a chat template."""

    prompt: Text | list[int] | list[Text] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] = 16
    """0 with `echo` returns only the prompt's own log-probabilities."""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool = False
    suffix: Annotated[str, Field(max_length=0)] = ""


class EmbeddingRequest(RequestBody):
    """`POST /v1/embeddings`."""

    model: str
    input: Text | list[int] | list[Text] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    """Refused: an embedding has the dimensions of the model's hidden states."""


class TokenizeRequest(RequestBody):
    """`POST /tokenize`, in vLLM's form (`prompt` or `messages`) or llama.cpp's (`content`)."""

    model: str | None = None
    """Default: the first model."""
    prompt: Text | None = None
    content: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    chat_template_kwargs: dict[str, Any] = {}
    reasoning_effort: Annotated[str, Field(max_length=20)] | None = None
    """As of a chat completion."""
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = True
    """For `prompt`: with the begin token if the model has one."""
    return_token_strs: bool = False
    """Adds `token_strs`, the text of each token."""
    add_special: bool = False
    """For `content`: with the begin token if the model has one."""
    parse_special: Literal[True] = True
    """For `content`: special tokens in it are read as such; false is not supported."""
    with_pieces: bool = False
    """For `content`: each token as an object with `id` and `piece`."""


class DetokenizeRequest(RequestBody):
    """`POST /detokenize`: token ids to text."""

    model: str | None = None
    """Default: the first model."""
    tokens: Annotated[list[int], Field(max_length=1_000_000)]
