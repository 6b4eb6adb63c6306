"""The internal form of a chat request, which `api/chat_request.py` builds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stillhouse.errors import SchemaError
from stillhouse.models import NO_PENALTIES, LogitPenalties, Message, Sampling, ToolCallFormat
from stillhouse.serve.errors import InvalidRequestError

NO_LIMIT = 2**31 - 1
"""`max_tokens` of a request that sets none: the context limits the answer."""


@dataclass(frozen=True)
class ToolOptions:
    """The tools of a chat, and whether the model must call one."""

    offered: tuple[dict[str, Any], ...] = ()
    """The `function` objects of the tools that the model may call: `name`, `description`, `parameters`."""
    forced: tuple[dict[str, Any], ...] = ()
    """Those of which it must call one; empty if it need not call any."""
    single_call: bool = False
    """Whether the answer ends after its first call."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the offered tools."""
        return tuple(tool["name"] for tool in self.offered)


def choose_tools(
    tools: list[dict[str, Any]], choice: str | None, *, name: str | None = None, single_call: bool = False
) -> ToolOptions:
    """Returns the tools of a chat. Takes long for large schemas: not for the event loop.

    Args:
        tools: the `function` objects.
        choice: `auto`, `none`, `required`, or None, which is `auto`.
        name: the one tool that the model must call; ``choice`` does not matter then.

    Raises:
        InvalidRequestError: the tools contradict each other or the choice.
    """
    if not tools and (name is not None or choice not in (None, "none", "auto")):
        raise InvalidRequestError("tool_choice needs tools", "tool_choice")
    if not tools or (choice == "none" and name is None):
        return ToolOptions()
    if len({tool["name"] for tool in tools}) < len(tools):
        raise InvalidRequestError("two tools have the same name", "tools")
    forced = tools if choice == "required" else []
    if name is not None:
        forced = [tool for tool in tools if tool["name"] == name]
        if not forced:
            raise InvalidRequestError(f"there is no tool {name!r}", "tool_choice")
    for index, tool in enumerate(tools):
        if tool in forced:
            check_schema(tool.get("parameters") or {"type": "object"}, f"tools.{index}.function.parameters")
    if len(forced) > 1:
        # Each schema alone may be fine and all of them together too long.
        check_schema(ToolCallFormat("", "", "arguments").schema(forced), "tools")
    return ToolOptions(tuple(tools), tuple(forced), single_call)


@dataclass(frozen=True)
class ChatTask:
    """A conversation to continue, and how.

    Raises:
        InvalidRequestError: its fields contradict each other.
    """

    model: str
    messages: tuple[Message, ...]
    """In the form that chat templates read: `role` (`system`, `user`, `assistant`, `tool`), `content` (text),
    and optionally `reasoning_content`, `tool_calls` (arguments as an object), `tool_call_id`, `name`."""
    sampling: Sampling
    """Its seed may be None, for a random one, and its ``max_tokens`` :data:`NO_LIMIT`."""
    penalties: LogitPenalties = NO_PENALTIES
    choices: int = 1
    """How many answers to generate."""
    top_logprobs: int | None = None
    """Likeliest tokens to report with each token; 0 reports only the token's own log-probability, None
    nothing."""
    tools: ToolOptions = field(default_factory=ToolOptions)
    output_schema: dict[str, Any] | None = None
    """JSON schema that the answer must follow, from
    :func:`check_schema`."""
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    """Variables for the chat template; refused if the template does not use them."""
    reasoning_effort: str | None = None
    """A further variable of the template, which it need not use; `none` also sets `enable_thinking` to
    False."""
    continue_final_message: bool = False
    """Whether to continue the last message, which is an assistant's, instead of beginning another."""

    def __post_init__(self) -> None:
        if self.output_schema and self.tools.offered and not self.tools.forced:
            raise InvalidRequestError(
                "an answer that must follow response_format cannot call tools; "
                "set tool_choice to none or to required",
                "tool_choice",
            )
        if not self.continue_final_message:
            return
        final = self.messages[-1] if self.messages else {}
        if final.get("role") != "assistant" or final.get("tool_calls"):
            raise InvalidRequestError(
                "only a last message of the role assistant, without tool_calls, can be continued", "messages"
            )
        if self.output_schema or self.tools.forced:
            raise InvalidRequestError(
                "an answer that must follow a schema, or call a tool, cannot continue a message",
                "continue_final_message",
            )

    @property
    def has_tool_messages(self) -> bool:
        """Whether the conversation contains tool calls or results."""
        return any(message.get("tool_calls") or message["role"] == "tool" for message in self.messages)


def check_schema(schema: dict[str, Any], param: str) -> dict[str, Any]:
    """Returns a schema that generation can enforce; raises InvalidRequestError for any other."""
    from stillhouse.models import validated_schema

    try:
        return validated_schema(schema)
    except SchemaError as error:
        raise InvalidRequestError(f"{param}: {error}"[:500], param) from None
