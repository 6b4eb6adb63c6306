"""Chat templates: messages to text, and to token ids with a mask of what the assistant wrote.

Templates are rendered by Jinja in a sandbox (`jinja_sandbox`). Which tokens are the assistant's follows from
the template alone (`assistant_mask`). Text inside a message cannot forge a turn: a user who types
`<|im_end|>` gets the tokens of those characters, not the special token. Images are not supported.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stillhouse.errors import ChatTemplateError, ModelError
from stillhouse.hashing import sha256_text
from stillhouse.models.chat.encode import added_tokens, encode_as_text, encode_segment
from stillhouse.models.chat.reasoning import REASONING_END, REASONING_START

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from stillhouse.models.chat.tool_calls import ToolCallFormat
    from stillhouse.models.types import Message

PLAIN = """{{ bos_token }}{% for message in messages %}
{%- if message['role'] == 'user' %}{{ 'User:\\n' + message['content'] + '\\n\\n' }}
{%- elif message['role'] == 'assistant' %}{{ 'Assistant:\\n' + message['content'] + eos_token + '\\n\\n' }}
{%- else %}{{ message['content'] + '\\n\\n' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"""
"""For models that declare no template (base models): `User:` and `Assistant:` on lines of their own."""

_SET_TEMPLATE = "Set student.template: teacher, or put another chat template into the model's directory."
# Noncharacters around the number of a special token that a message spells; never valid in interchanged text.
_PLACEHOLDER_START, _PLACEHOLDER_END = "\ufdd0", "\ufdd1"
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class ChatTemplate:
    """A model's chat template.

    Args:
        source: Jinja.
        special_tokens: variables of the template: `bos_token`, `eos_token`, …
        declared: False where the model has no template and :data:`PLAIN` takes its place.
        tool_source: the model's second template, named `tool_use`, for conversations with tools; None where
            ``source`` serves for all.
    """

    source: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    declared: bool = True
    tool_source: str | None = None

    @classmethod
    def plain(cls, special_tokens: Mapping[str, str] | None = None) -> ChatTemplate:
        """The template for models that declare none."""
        return cls(PLAIN, {"bos_token": "", "eos_token": "", **(special_tokens or {})}, declared=False)

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the source."""
        return sha256_text(self.source)

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that end an answer besides the end token; base models have no end-of-turn token."""
        return () if self.declared else ("\n\nUser:",)

    def require_variables(self, names: Collection[str]) -> None:
        """Raises ModelError if the template does not read one of these variables, which would be ignored."""
        from stillhouse.models.chat.jinja_sandbox import variables_read

        for name in names:
            if name not in variables_read(self.source):
                raise ModelError(
                    f"the chat template does not read `{name}`, so it would have no effect",
                    hint=f"Remove teacher.{name}.",
                )

    @functools.cached_property
    def for_tools(self) -> ChatTemplate:
        """The template for conversations with tools: the one named `tool_use`, or this one."""
        if self.tool_source is None:
            return self
        return type(self)(self.tool_source, self.special_tokens, self.declared)

    @functools.cached_property
    def tool_call_format(self) -> ToolCallFormat | None:
        """How the model writes tool calls; None where the template has none, or an unsupported format."""
        from stillhouse.models.chat.tool_calls import detect_tool_call_format

        return detect_tool_call_format(self.for_tools.render)

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, **variables: Any
    ) -> str:
        """The conversation as text.

        Args:
            variables: further variables for the template, such as `tools`.

        Raises:
            ModelError: the template is malformed, or refuses these messages.
        """
        from stillhouse.models.chat.jinja_sandbox import without_generation_marks

        text = self.render_marked(messages, add_generation_prompt=add_generation_prompt, **variables)
        return without_generation_marks(text)

    def render_marked(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, **variables: Any
    ) -> str:
        """As :meth:`render`, with the template's own `{% generation %}` marks left in."""
        import jinja2

        try:
            prepared = [self._prepared(message) for message in messages]
            return self._run(
                self._variables(prepared, add_generation_prompt=add_generation_prompt, **variables)
            )
        except jinja2.TemplateSyntaxError as error:
            raise ChatTemplateError(
                f"the chat template is malformed: line {error.lineno}: {error.message}"
            ) from error
        except Exception as error:  # a template is a third-party program: it can fail in any way
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise ChatTemplateError(
                f"the chat template refuses a conversation of roles {roles}: {error}", hint=_SET_TEMPLATE
            ) from error

    def encode(
        self,
        tokenizer: PreTrainedTokenizerFast,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[list[int], list[bool]]:
        """Token ids [T] of the conversation, and which of them the assistant wrote and learns [T].

        As :meth:`encode_turns`.
        """
        ids, turns = self.encode_turns(tokenizer, messages, tools=tools)
        mask = [False] * len(ids)
        for turn in turns.values():
            mask[turn.start : turn.stop] = [True] * len(turn)
        return ids, mask

    def encode_turns(
        self,
        tokenizer: PreTrainedTokenizerFast,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[list[int], dict[int, range]]:
        """Token ids [T] of the conversation, and the tokens of each message that is learned, by its index.

        The assistant's part of a turn begins where generation would begin and ends with the end-of-turn
        token. A turn with a `weight` of 0, and an earlier one whose reasoning the template leaves out, is
        context and is not learned.

        Args:
            tools: functions that the conversation may call, in OpenAI's form.

        Raises:
            ModelError: the template refuses the messages, contradicts itself about where the last answer
                begins, or leaves out tools, calls or their results.
        """
        guard = _Guard(tokenizer, self)
        text, turns = self._turns(
            guard.messages(messages),
            guard.replaced(list(tools or ()), guard.added_tokens),
            list(guard.added_tokens),
            guard.turn_tokens,
        )
        # Every segment is encoded alone: no token may straddle the border between prompt and answer.
        ids: list[int] = []
        ranges: dict[int, range] = {}
        previous_end = 0
        for index, start, end in turns:
            ids += guard.encode(text[previous_end:start], text[:previous_end])
            first = len(ids)
            ids += guard.encode(text[start:end], text[:start])
            ranges[index] = range(first, len(ids))
            previous_end = end
        ids += guard.encode(text[previous_end:], text[:previous_end])
        return ids, ranges

    def check(
        self,
        tokenizer: PreTrainedTokenizerFast,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Raises the ModelError that :meth:`encode` would raise, without its tokens."""
        guard = _Guard(tokenizer, self)
        added, marks = list(guard.added_tokens), guard.turn_tokens
        self._turns(guard.messages(messages), guard.replaced(list(tools or ()), added), added, marks)

    def _turns(
        self, messages: Sequence[Message], tools: Any, added_tokens: list[str], turn_tokens: list[str]
    ) -> tuple[str, list[tuple[int, int, int]]]:
        from stillhouse.models.chat.assistant_mask import assistant_turns, require_tools
        from stillhouse.models.chat.end_marks import end_marks, with_end_marks

        variables = {"tools": tools} if tools else {}
        text, turns = assistant_turns(
            functools.partial(self.render_marked, **variables), messages, added_tokens, turn_tokens
        )
        require_tools(text, messages, tools)
        return with_end_marks(text, turns, end_marks(self._texts_after_answer, added_tokens), turn_tokens)

    def encode_prompt(
        self,
        tokenizer: PreTrainedTokenizerFast,
        messages: Sequence[Message],
        *,
        answer_prefix: str = "",
        answer_text: str = "",
        **variables: Any,
    ) -> list[int]:
        """Token ids [T] after which the model writes the next answer.

        Args:
            answer_prefix: the beginning of the answer; the model writes the rest. Special tokens in it are
                read as such.
            answer_text: the text after ``answer_prefix``. It comes from a client: tokens that delimit turns
                become plain text.
            variables: further variables for the template, such as `tools`; special tokens that they spell
                become plain text.
        """
        guard = _Guard(tokenizer, self)
        variables = {key: guard.replaced(value, guard.added_tokens) for key, value in variables.items()}
        text = self.render(guard.messages(messages), add_generation_prompt=True, **variables)
        return guard.encode(text + answer_prefix + guard.replaced(answer_text, guard.turn_tokens), "")

    def end_marks(self, tokenizer: PreTrainedTokenizerFast) -> tuple[str, ...]:
        """The tokens that this template writes after an answer; none where an answer ends with text.

        Raises:
            ModelError: the template refuses a question and an answer.
        """
        from stillhouse.models.chat.end_marks import end_marks

        return end_marks(self._texts_after_answer, list(added_tokens(tokenizer))).tokens

    @functools.cached_property
    def _texts_after_answer(self) -> tuple[str, str]:
        from stillhouse.models.chat.end_marks import texts_after_answer

        return texts_after_answer(self.render)

    def end_token_ids(self, tokenizer: PreTrainedTokenizerFast) -> set[int]:
        """Ids that end an answer: the tokenizer's end token, and the end marks of this template."""
        marks = map(tokenizer.backend_tokenizer.token_to_id, self.end_marks(tokenizer))
        return {number for number in [tokenizer.eos_token_id, *marks] if isinstance(number, int)}

    def _variables(self, messages: list[Message], **variables: Any) -> dict[str, Any]:
        """The variables that the template reads."""
        absent = {"add_generation_prompt": False, "tools": None, "documents": None}
        return {"messages": messages, **absent, **self.special_tokens, **variables}

    def _run(self, variables: Mapping[str, Any]) -> str:
        from stillhouse.models.chat.jinja_sandbox import compile_template

        return compile_template(self.source).render(**variables)

    @functools.cached_property
    def user_turn(self) -> str:
        """One rendered turn of a user; empty where the template refuses such a conversation."""
        try:
            return self.render([{"role": "user", "content": "x"}])
        except ModelError:
            return ""

    def _prepared(self, message: Message) -> Message:
        """The message as this template reads it: without `weight`, its reasoning and calls in its form."""
        message = {key: value for key, value in message.items() if key != "weight"}
        if message.get("tool_calls") and self._reads_arguments_as_text:
            message["tool_calls"] = [_with_text_arguments(call) for call in message["tool_calls"]]
        reasoning = message.get("reasoning_content")
        if not reasoning or self._reasoning_field == "reasoning_content":
            return message
        del message["reasoning_content"]
        if self._reasoning_field is not None:
            return {**message, self._reasoning_field: reasoning}
        block = f"{REASONING_START}\n{reasoning}\n{REASONING_END}"
        return {**message, "content": f"{block}\n\n{message.get('content') or ''}"}

    @functools.cached_property
    def _reasoning_field(self) -> str | None:
        """The message field in which the template reads reasoning; None where it has none."""
        for name in _REASONING_FIELDS:
            if name not in self.source:
                continue
            answer = {"role": "assistant", "content": "x", name: _PLACEHOLDER_START}
            try:
                text = self._run(self._variables([{"role": "user", "content": "x"}, answer]))
            except Exception:  # it may need another conversation, which says nothing about the field
                text = _PLACEHOLDER_START if name == _REASONING_FIELDS[0] else ""
            if _PLACEHOLDER_START in text:
                return name
        return None

    @functools.cached_property
    def _reads_arguments_as_text(self) -> bool:
        """Whether the template needs a call's arguments as JSON text: it fails on an object, not on text."""

        def renders(arguments: Any) -> bool:
            call = {"id": "call00000", "type": "function", "function": {"name": "x", "arguments": arguments}}
            answer = {"role": "assistant", "content": "", "tool_calls": [call]}
            try:
                return "x" in self._run(self._variables([{"role": "user", "content": ""}, answer]))
            except Exception:  # a template is a third-party program: it can fail in any way
                return False

        return not renders({"y": 1}) and renders('{"y": 1}')


def _with_text_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def compare_templates(teacher: ChatTemplate, student: ChatTemplate) -> str | None:
    """A warning that says which setting to choose when the two differ; None when they are the same."""
    if teacher.hash == student.hash:
        return None
    if not student.declared:
        return "the student has no chat template of its own; set student.template: teacher"
    return (
        f"teacher and student have different chat templates ({teacher.hash[:12]}, {student.hash[:12]}): "
        "the student learns the answers in its own format; "
        "set student.template: teacher to train and save it with the teacher's"
    )


class _Guard:
    """Keeps the text of messages apart from the text of the template.

    A special token that a message spells is replaced by a placeholder before rendering, and becomes plain
    text when tokenized. In user, system and tool messages that holds for all added tokens; in the assistant's
    only for those that delimit turns (its `<think>` is its own).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, template: ChatTemplate) -> None:
        self.tokenizer = tokenizer
        is_special = added_tokens(tokenizer)
        self.added_tokens = list(is_special)
        self.turn_tokens = [
            token for token in self.added_tokens if is_special[token] or token in template.user_turn
        ]

    def messages(self, messages: Sequence[Message]) -> list[Message]:
        return [self._guarded(message) for message in messages]

    def _guarded(self, message: Message) -> Message:
        tokens = self.turn_tokens if message.get("role") == "assistant" else self.added_tokens
        return {
            key: self.replaced(value, self.added_tokens if key == "tool_calls" else tokens)
            for key, value in message.items()
        }

    def replaced(self, value: Any, tokens: list[str]) -> Any:
        """``value`` with a placeholder for each of ``tokens``, also inside of lists and mappings."""
        if isinstance(value, Mapping):
            return {self.replaced(key, tokens): self.replaced(item, tokens) for key, item in value.items()}
        if isinstance(value, list):
            return [self.replaced(item, tokens) for item in value]
        if not isinstance(value, str):
            return value
        value = value.translate(_NO_PLACEHOLDERS)
        for token in tokens:
            if token in value:
                number = self.added_tokens.index(token)
                value = value.replace(token, f"{_PLACEHOLDER_START}{number}{_PLACEHOLDER_END}")
        return value

    def encode(self, text: str, before: str) -> list[int]:
        """Token ids of ``text``, which follows ``before``; placeholders become plain text."""
        ids: list[int] = []
        head, *rest = text.split(_PLACEHOLDER_START)
        ids += encode_segment(self.tokenizer, head, before, self.added_tokens)
        for segment in rest:
            number, _, tail = segment.partition(_PLACEHOLDER_END)
            if not (number.isdecimal() and int(number) < len(self.added_tokens)):
                raise ChatTemplateError(
                    "the chat template writes a noncharacter, which is never text (U+FDD0)"
                )
            token = self.added_tokens[int(number)]
            ids += encode_as_text(self.tokenizer, token, self.added_tokens)
            ids += encode_segment(self.tokenizer, tail, _PLACEHOLDER_START, self.added_tokens)
        return ids


# Our own placeholders in a message are noncharacters, which have no meaning in text, and are dropped.
_NO_PLACEHOLDERS = dict.fromkeys(range(0xFDD0, 0xFDD6))
