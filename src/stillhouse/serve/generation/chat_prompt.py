"""Builds the prompt of a chat: its messages, its tools, and the beginning of its answer."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from stillhouse.errors import StillhouseError
from stillhouse.models import REASONING_END, REASONING_START, Message, Request, Sampling, ToolCallFormat
from stillhouse.serve.engines.base import Engine, require_capability
from stillhouse.serve.errors import InvalidRequestError
from stillhouse.serve.generation.chat_task import ChatTask
from stillhouse.serve.generation.tool_parser import ToolCallParser
from stillhouse.serve.generation.tool_prompt import TOOL_CALL_FORMAT, with_tool_prompt

_OWN_VARIABLES = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message"})
"""Variables of a template that follow from other fields of a request."""


@dataclass(frozen=True)
class ChatPrompt:
    """The prompt of a chat, and how its answer is generated and parsed."""

    ids: tuple[int, ...]
    sampling: Sampling
    json_schema: dict[str, Any] | None
    starts_in_reasoning: bool
    """Whether the prompt ends with `<think>`."""
    call_format: ToolCallFormat | None
    """How the answer writes tool calls; None if it may have none."""
    tool_names: tuple[str, ...]
    """Names of the tools that it may call."""
    answer_prefix: str
    """The part of the answer that is already in the prompt: the opening mark of a forced tool call."""

    @property
    def preserved_tokens(self) -> tuple[str, ...]:
        """Special tokens that must stay in the answer's text, to be parsed."""
        return self.call_format.delimiters if self.call_format else ()

    def tool_parser(self) -> ToolCallParser | None:
        """Returns a new parser for one answer; None if it may have no tool calls."""
        if self.call_format is None:
            return None
        parser = ToolCallParser(self.call_format, self.tool_names)
        parser.add(self.answer_prefix)
        return parser


def build_chat_prompt(engine: Engine, task: ChatTask) -> ChatPrompt:
    """Renders and tokenizes a chat. An answer that must follow a schema or call a tool skips reasoning.

    Raises:
        InvalidRequestError: the model cannot do what the task asks for.
        StillhouseError: the template refuses the conversation, or it is too long.
    """
    tools = task.tools
    prompt = _Prompt(engine, task)
    call_format = prompt.call_format if tools.offered else None
    sampling = task.sampling
    if call_format and tools.single_call and not tools.forced:
        # Stopping at the closing mark ends the answer after its first call.
        sampling = dataclasses.replace(sampling, stop=(*sampling.stop, *call_format.delimiters[1:]))
    schema, answer_prefix = task.output_schema, ""
    if call_format and tools.forced:
        from stillhouse.models import with_guidance_options

        schema, answer_prefix = with_guidance_options(call_format.schema(tools.forced)), call_format.prefix
    if schema:
        param = "tool_choice" if answer_prefix else "response_format"
        require_capability(engine, task.model, "schema", param)
    ids = prompt.encode()
    starts_in_reasoning = engine.prompts.ends_in_reasoning(ids)
    if task.continue_final_message:
        ids = prompt.encode_continued(starts_in_reasoning)
        starts_in_reasoning = engine.prompts.ends_in_reasoning(ids) or prompt.continues_reasoning
    elif schema and (starts_in_reasoning or answer_prefix):
        # The schema constrains every generated token. What precedes the JSON (the end of reasoning, the
        # opening mark of a call) must therefore be part of the prompt.
        begun = f"\n{REASONING_END}\n\n{answer_prefix}" if starts_in_reasoning else answer_prefix
        ids = prompt.encode(answer_prefix=begun)
        starts_in_reasoning = False
    return ChatPrompt(
        tuple(ids), sampling, schema, starts_in_reasoning, call_format, tools.names, answer_prefix
    )


class _Prompt:
    """Encodes the conversation of a task with the model's template."""

    def __init__(self, engine: Engine, task: ChatTask) -> None:
        self._prompts, self._task = engine.prompts, task
        self._messages: list[Message] = list(task.messages)
        self._with_tools = bool(task.tools.offered or task.has_tool_messages)
        template = engine.prompts.template.for_tools if self._with_tools else engine.prompts.template
        self._variables = _template_variables(task, template.source)
        self.call_format = engine.prompts.template.tool_call_format if self._with_tools else None
        if self._with_tools and self.call_format is None:
            # The template knows no tools: the prompt describes them instead.
            self.call_format, self._with_tools = TOOL_CALL_FORMAT, False
            self._messages = with_tool_prompt(
                self._messages, task.tools.offered, engine.prompts.template.render
            )
        elif task.tools.offered:
            self._variables["tools"] = [{"type": "function", "function": tool} for tool in task.tools.offered]
        self._final = self._messages.pop() if task.continue_final_message else {}

    @property
    def continues_reasoning(self) -> bool:
        """Whether the message that is continued consists of reasoning alone."""
        return bool(self._final.get("reasoning_content")) and not self._final.get("content")

    def encode(self, *, answer_prefix: str = "", answer_text: str = "") -> list[int]:
        """Token ids of the conversation and the beginning of its answer."""
        request = Request("of this request", self._messages, self._task.sampling)
        return _require_ids(
            self._prompts.encode(
                request,
                answer_prefix=answer_prefix,
                answer_text=answer_text,
                with_tools=self._with_tools,
                **self._variables,
            )
        )

    def encode_continued(self, starts_in_reasoning: bool) -> list[int]:
        """Token ids of the conversation up to the end of its last message, which is left open."""
        reasoning, content = self._final.get("reasoning_content"), str(self._final.get("content") or "")
        opening = "" if starts_in_reasoning else f"{REASONING_START}\n"
        if self.continues_reasoning:
            return self.encode(answer_prefix=opening, answer_text=str(reasoning))
        if reasoning:
            content = f"{reasoning}\n{REASONING_END}\n\n{content}"
            return self.encode(answer_prefix=opening, answer_text=content)
        closing = f"\n{REASONING_END}\n\n" if starts_in_reasoning else ""
        return self.encode(answer_prefix=closing, answer_text=content)


def _require_ids(ids: list[int] | StillhouseError) -> list[int]:
    """Returns the token ids of a conversation; raises if it could not be rendered or is empty."""
    if isinstance(ids, StillhouseError):
        raise ids
    if not ids:
        raise InvalidRequestError("the conversation is empty", "messages")
    return ids


def _template_variables(task: ChatTask, source: str) -> dict[str, Any]:
    """Further variables for the chat template.

    Raises:
        InvalidRequestError: the template does not use one of them, or it is not the client's to set.
    """
    variables = {name: value for name, value in task.template_variables.items() if value is not None}
    if task.reasoning_effort == "none" or (_skips_reasoning(task) and _reads(source, "enable_thinking")):
        variables.setdefault("enable_thinking", False)
    # DeepSeek's and Granite's templates have another name for it.
    other_name = _reads(source, "thinking") and not _reads(source, "enable_thinking")
    if "enable_thinking" in variables and other_name:
        variables["thinking"] = variables.pop("enable_thinking")
    for name, value in variables.items():
        param = f"chat_template_kwargs.{name}"
        if name in _OWN_VARIABLES or not name.isidentifier():
            raise InvalidRequestError(f"the variable {name!r} cannot be set", param)
        # To turn off what a model does not have changes nothing.
        if not (value is False and name in ("enable_thinking", "thinking")) and not _reads(source, name):
            raise InvalidRequestError(
                f"the chat template of {task.model} does not use {name!r}; leave it out", param, "unsupported"
            )
    if task.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", task.reasoning_effort)
    return variables


def _skips_reasoning(task: ChatTask) -> bool:
    """Whether the answer begins without reasoning: it is JSON, or a message that is past its reasoning."""
    if task.continue_final_message:
        final = task.messages[-1]
        return bool(final.get("content")) and not final.get("reasoning_content")
    return bool(task.output_schema or task.tools.forced)


def _reads(source: str, name: str) -> bool:
    """Whether a template mentions a variable. It is not parsed: that could take long in this process."""
    return re.search(rf"\b{name}\b", source) is not None
