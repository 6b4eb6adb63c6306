"""Finds the spans of a rendered conversation that the assistant wrote.

A template's own `{% generation %}` marks decide where it has them. Otherwise the spans follow from how the
template behaves: a turn starts where its prompt (`add_generation_prompt`) ends, and ends where a second
rendering with another answer in its place continues in the same way. No template is recognised by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from stillhouse.errors import ModelError
from stillhouse.models.chat.jinja_sandbox import (
    GENERATION_END,
    GENERATION_START,
    without_generation_marks,
)
from stillhouse.models.chat.reasoning import REASONING_BLOCK

if TYPE_CHECKING:
    from stillhouse.models.types import Message, RenderMessages

Span = tuple[int, int]

_PROBE = "\ufdd4"  # a noncharacter that replaces the answer in the second rendering
_HINT = "Set student.template: teacher, or mark the answers in the student's template with {% generation %}."


def assistant_spans(
    render_marked: RenderMessages,
    messages: Sequence[Message],
    added_tokens: Sequence[str],
    turn_tokens: Sequence[str],
) -> tuple[str, list[Span]]:
    """The rendered text, and the character spans in it that the assistant wrote, in order.

    Args:
        render_marked: renders with the template, `{% generation %}` marks left in.
        added_tokens: the tokenizer's added tokens.
        turn_tokens: those of them that delimit turns.

    Raises:
        ModelError: the template gives no consistent answer.
    """
    text = render_marked(messages)
    if GENERATION_START in text:
        return _spans_between_marks(text, added_tokens)

    def render(messages: Sequence[Message], **variables: Any) -> str:
        return without_generation_marks(render_marked(messages, **variables))

    spans = []
    for index, message in enumerate(messages):
        if message.get("role") == "assistant":
            span = _turn_span(render, messages, index, text, added_tokens, turn_tokens)
            if _keeps_reasoning(message, text[slice(*span)]):
                spans.append(span)
            elif index == len(messages) - 1:
                # Templates leave out the reasoning of earlier turns on purpose. Without that of the last
                # turn, the student would learn to answer without thinking.
                raise ModelError("the chat template leaves out the reasoning of the last answer", hint=_HINT)
    return text, spans


def _spans_between_marks(marked: str, added_tokens: Sequence[str]) -> tuple[str, list[Span]]:
    """Spans between the template's marks, each with the end-of-turn token right after it, if any."""
    segments = re.split(f"[{GENERATION_START}{GENERATION_END}]", marked)
    text, spans, offset = "".join(segments), [], 0
    for number, segment in enumerate(segments):
        if number % 2:  # the segments alternate: outside, inside, outside, …
            spans.append((offset, offset + len(segment)))
        offset += len(segment)
    # Text after the last answer can only end it. The same text after an earlier answer ends that one, too.
    end = next((token for token in added_tokens if segments[-1].startswith(token)), "")
    return text, [(start, stop + len(end) if text.startswith(end, stop) else stop) for start, stop in spans]


def _turn_span(
    render: RenderMessages,
    messages: Sequence[Message],
    index: int,
    text: str,
    added_tokens: Sequence[str],
    turn_tokens: Sequence[str],
) -> Span:
    """The span of the answer ``messages[index]`` in ``text``."""
    prompt = render(messages[:index], add_generation_prompt=True)
    if not text.startswith(prompt):
        raise ModelError(
            "the chat template prompts for an answer differently from how it renders one: the prompt ends "
            f"{prompt[-40:]!r}, the conversation continues {text[_common_prefix(prompt, text) :][:40]!r}",
            hint=_HINT,
        )
    probe = [*messages[:index], {**messages[index], "content": _PROBE}]
    following = next(
        (i for i in range(index + 1, len(messages)) if messages[i].get("role") == "assistant"), None
    )
    # Compare only up to the next answer: a later turn can change how the template renders this one.
    if following is None:
        whole, probed = text, render([*probe, *messages[index + 1 :]])
    else:
        whole = render(messages[:following], add_generation_prompt=True)
        probed = render([*probe, *messages[index + 1 : following]], add_generation_prompt=True)
    before, separator, after = probed.rpartition(_PROBE)
    if (
        not separator
        or not whole.endswith(after)
        or not text.startswith(whole)
        or len(whole) - len(after) < len(prompt)
    ):
        raise ModelError("the chat template changes an answer beyond recognition", hint=_HINT)
    header = before[len(prompt) :] if before.startswith(prompt) else ""
    if any(token in header for token in turn_tokens):
        raise ModelError(f"the chat template's prompt for an answer lacks {header!r}", hint=_HINT)
    # Text after the last answer can only end it. The same text after an earlier answer ends that one, too.
    end = _through_first_token(render(probe).rpartition(_PROBE)[2], added_tokens)
    return len(prompt), len(whole) - len(after) + (len(end) if after.startswith(end) else 0)


def end_of_turn(render_marked: RenderMessages, added_tokens: Iterable[str]) -> str:
    """The text that the template puts after an answer, up to and including the end-of-turn token."""
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _PROBE}]
    text = without_generation_marks(render_marked(turns))
    return _through_first_token(text.rpartition(_PROBE)[2], added_tokens)


def _through_first_token(after: str, added_tokens: Iterable[str]) -> str:
    """``after`` up to and including its first added token; without one, its text before whitespace."""
    ends = [after.index(token) + len(token) for token in added_tokens if token in after]
    if ends:
        return after[: min(ends)]
    return re.match(r"\S*", after).group()  # pyright: ignore[reportOptionalMemberAccess]  (matches always)


def _keeps_reasoning(message: Message, rendered: str) -> bool:
    """Whether the message's reasoning, if it has any, is part of what the template ``rendered``."""
    reasoning = [message["reasoning_content"]] if message.get("reasoning_content") else []
    reasoning += REASONING_BLOCK.findall(message.get("content") or "")
    return all(block.strip() in rendered for block in reasoning)


def _common_prefix(a: str, b: str) -> int:
    """Length of the common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
