"""Chat templates: messages to text, and to token ids with a mask of what the assistant wrote.

Rendering is Jinja in a sandbox (see sandbox.py). Which tokens are the assistant's follows from the
template alone (see spans.py). Text inside a message can never forge a turn: a user who types
`<|im_end|>` gets the tokens of those characters, not the special token. Images are not supported.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stillhouse.errors import ModelError
from stillhouse.hashing import sha256_text
from stillhouse.models.chat.encode import added_tokens, encode_inert, encode_piece

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
_GUARD = (
    "\ufdd0"  # noncharacter: stands for a mark that a message spells; never valid in text for interchange
)
_GUARD_END = "\ufdd1"


@dataclass(frozen=True)
class ChatTemplate:
    """A model's chat template.

    Args:
        source: Jinja.
        special_tokens: what the template may name: `bos_token`, `eos_token`, …
        declared: False where the model has none and the plain one stands in.
    """

    source: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    declared: bool = True

    @classmethod
    def plain(cls, special_tokens: Mapping[str, str] | None = None) -> ChatTemplate:
        """The stand-in for models without a template."""
        return cls(PLAIN, {"bos_token": "", "eos_token": "", **(special_tokens or {})}, declared=False)

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the source."""
        return sha256_text(self.source)

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts at which an answer ends besides the end token; base models know no end token of a turn."""
        return () if self.declared else ("\n\nUser:",)

    @functools.cached_property
    def tool_call_format(self) -> ToolCallFormat | None:
        """How the model writes a call of a tool; None where the template knows none, or no form read here."""
        from stillhouse.models.chat.tool_calls import detect_tool_call_format

        return detect_tool_call_format(self)

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, **variables: Any
    ) -> str:
        """The conversation as text.

        Args:
            variables: further variables for the template, such as `tools`.

        Raises:
            ModelError: the template is malformed, or refuses these messages.
        """
        from stillhouse.models.chat.jinja_sandbox import GENERATION_END, GENERATION_START

        text = self.render_marked(messages, add_generation_prompt=add_generation_prompt, **variables)
        return text.replace(GENERATION_START, "").replace(GENERATION_END, "")

    def render_marked(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, **variables: Any
    ) -> str:
        """The same, with the template's own `{% generation %}` marks left in."""
        import jinja2

        try:
            return self._run(
                {
                    "messages": [self._folded(message) for message in messages],
                    "add_generation_prompt": add_generation_prompt,
                    **{"tools": None, "documents": None, **self.special_tokens, **variables},
                }
            )
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(
                f"the chat template is malformed: line {error.lineno}: {error.message}"
            ) from error
        except Exception as error:  # a template is a program from elsewhere: it may fail in any way
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise ModelError(
                f"the chat template refuses a conversation of roles {roles}: {error}", hint=_SET_TEMPLATE
            ) from error

    def encode(
        self, tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]
    ) -> tuple[list[int], list[bool]]:
        """Token ids [T] of the conversation, and which of them the assistant wrote [T].

        The assistant's part of a turn starts where generation would start and ends with the end-of-turn
        token. An earlier turn whose reasoning the template leaves out is context, not to be learned.

        Raises:
            ModelError: the template refuses the messages, or contradicts itself about where a turn starts.
        """
        from stillhouse.models.chat.assistant_mask import assistant_spans

        guard = _Guard(tokenizer, self)
        text, spans = assistant_spans(self, guard.messages(messages), list(guard.marks), guard.turn_marks)
        ids: list[int] = []
        mask: list[bool] = []
        at = 0
        for start, end in [*spans, (len(text), len(text))]:
            for piece_start, piece_end, learned in ((at, start, False), (start, end, True)):
                new = guard.encode(text[piece_start:piece_end], text[:piece_start])
                ids += new
                mask += [learned] * len(new)
            at = end
        return ids, mask

    def encode_prompt(
        self,
        tokenizer: PreTrainedTokenizerFast,
        messages: Sequence[Message],
        *,
        answer_prefix: str = "",
        **variables: Any,
    ) -> list[int]:
        """Token ids [T] after which the model writes the next answer.

        Args:
            answer_prefix: how the answer begins; the model writes the rest.
            variables: further variables for the template, such as `tools`; special tokens that they spell
                become plain text.
        """
        guard = _Guard(tokenizer, self)
        variables = {key: guard.replaced(value, guard.marks) for key, value in variables.items()}
        text = self.render(guard.messages(messages), add_generation_prompt=True, **variables)
        return guard.encode(text + answer_prefix, "")

    def end_token_ids(self, tokenizer: PreTrainedTokenizerFast) -> set[int]:
        """Ids that end an answer: the tokenizer's end token, and what this template puts after one."""
        from stillhouse.models.chat.assistant_mask import end_of_turn

        marks = added_tokens(tokenizer)
        text = end_of_turn(self, marks)
        mark = next((mark for mark in marks if text.endswith(mark)), None)
        ends = [tokenizer.eos_token_id, tokenizer.backend_tokenizer.token_to_id(mark) if mark else None]
        return {number for number in ends if isinstance(number, int)}

    def _run(self, variables: Mapping[str, Any]) -> str:
        from stillhouse.models.chat.jinja_sandbox import compile_template

        return compile_template(self.source).render(**variables)

    @functools.cached_property
    def user_turn(self) -> str:
        """One turn of a user; empty where the template refuses such a conversation."""
        try:
            return self.render([{"role": "user", "content": "x"}])
        except ModelError:
            return ""

    def _folded(self, message: Message) -> Message:
        """Reasoning as `<think>` text, where the template does not know the field."""
        reasoning = message.get("reasoning_content")
        if not reasoning or "reasoning_content" in self.source:
            return message
        return {**message, "content": f"<think>\n{reasoning}\n</think>\n\n{message.get('content') or ''}"}


def compare_templates(teacher: ChatTemplate, student: ChatTemplate) -> str | None:
    """A warning that says what to set when the two differ; None when they are the same."""
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
    """Keeps what messages say apart from what the template says.

    A mark that a message spells is replaced by a placeholder before rendering and becomes plain text when
    tokenized. In user, system and tool messages all added tokens are marks; in the assistant's, only those
    that build turns (its `<think>` is its own).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, template: ChatTemplate) -> None:
        self.tokenizer = tokenizer
        special = added_tokens(tokenizer)
        self.marks = list(special)
        self.turn_marks = [mark for mark in self.marks if special[mark] or mark in template.user_turn]

    def messages(self, messages: Sequence[Message]) -> list[Message]:
        return [self._guarded(message) for message in messages]

    def _guarded(self, message: Message) -> Message:
        marks = self.turn_marks if message.get("role") == "assistant" else self.marks
        return {
            key: self.replaced(value, self.marks if key == "tool_calls" else marks)
            for key, value in message.items()
        }

    def replaced(self, value: Any, marks: list[str]) -> Any:
        """``value`` with a placeholder for each of ``marks``, also inside of lists and mappings."""
        if isinstance(value, Mapping):
            return {self.replaced(key, marks): self.replaced(part, marks) for key, part in value.items()}
        if isinstance(value, list):
            return [self.replaced(part, marks) for part in value]
        if not isinstance(value, str):
            return value
        value = value.translate(_NO_PLACEHOLDERS)
        for mark in marks:
            if mark in value:
                value = value.replace(mark, f"{_GUARD}{self.marks.index(mark)}{_GUARD_END}")
        return value

    def encode(self, text: str, before: str) -> list[int]:
        """Token ids of ``text``, which stands after ``before``; placeholders become plain text."""
        ids: list[int] = []
        head, *rest = text.split(_GUARD)
        ids += encode_piece(self.tokenizer, head, before, self.marks)
        for part in rest:
            number, _, tail = part.partition(_GUARD_END)
            if not (number.isdecimal() and int(number) < len(self.marks)):
                raise ModelError("the chat template writes a character that stands for no text (U+FDD0)")
            mark = self.marks[int(number)]
            ids += encode_inert(self.tokenizer, mark, self.marks)
            ids += encode_piece(self.tokenizer, tail, _GUARD, self.marks)
        return ids


# Our own placeholders inside a message are noncharacters, which have no meaning in text; they are dropped.
_NO_PLACEHOLDERS = dict.fromkeys(range(0xFDD0, 0xFDD5))
