"""Which part of a rendered conversation the assistant wrote.

From the template's own `{% generation %}` marks where it has them. Otherwise from the template's
behaviour: a turn starts where the prompt for it (`add_generation_prompt`) ends, and its end is found
by rendering once more with another answer in its place and comparing what follows. No template is
known by name here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from stillhouse.errors import ModelError
from stillhouse.models.chat.jinja_sandbox import GENERATION_END, GENERATION_START

if TYPE_CHECKING:
    from stillhouse.models.chat.template import ChatTemplate
    from stillhouse.models.types import Message

Span = tuple[int, int]

_PROBE = "\ufdd4"  # noncharacter: stands in for an answer
_THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_HINT = "Set student.template: teacher, or mark the answers in the student's template with {% generation %}."


def assistant_spans(
    template: ChatTemplate, messages: Sequence[Message], marks: Sequence[str], turn_marks: Sequence[str]
) -> tuple[str, list[Span]]:
    """The rendered text, and the character spans in it that the assistant wrote, in order.

    Args:
        marks: the tokenizer's added tokens.
        turn_marks: those of them that delimit turns.

    Raises:
        ModelError: the template gives no consistent answer.
    """
    marked = template.render_marked(messages)
    if GENERATION_START in marked:
        return _from_marks(marked, marks)
    spans = []
    for index, message in enumerate(messages):
        if message.get("role") == "assistant":
            span = _turn(template, messages, index, marked, marks, turn_marks)
            if _keeps_reasoning(message, marked[slice(*span)]):
                spans.append(span)
            elif index == len(messages) - 1:
                raise ModelError("the chat template leaves out the reasoning of the last answer", hint=_HINT)
    return marked, spans


def _from_marks(marked: str, marks: Sequence[str]) -> tuple[str, list[Span]]:
    """Spans between the template's marks, each with the end-of-turn token right after it, if any."""
    parts = re.split(f"[{GENERATION_START}{GENERATION_END}]", marked)
    text, spans, at = "".join(parts), [], 0
    for number, part in enumerate(parts):
        if number % 2:
            spans.append((at, at + len(part)))
        at += len(part)
    # What follows the last answer can only end it; before an earlier one the same text means the same.
    end = next((mark for mark in marks if parts[-1].startswith(mark)), "")
    return text, [(start, stop + len(end) if text.startswith(end, stop) else stop) for start, stop in spans]


def _turn(
    template: ChatTemplate,
    messages: Sequence[Message],
    index: int,
    text: str,
    marks: Sequence[str],
    turn_marks: Sequence[str],
) -> Span:
    """Where the answer ``messages[index]`` stands in ``text``."""
    prompt = template.render(messages[:index], add_generation_prompt=True)
    if not text.startswith(prompt):
        raise ModelError(
            "the chat template asks for an answer differently from how it writes one down: the prompt ends "
            f"{prompt[-40:]!r}, the conversation goes on {text[_common(prompt, text) :][:40]!r}",
            hint=_HINT,
        )
    probe = [*messages[:index], {**messages[index], "content": _PROBE}]
    following = next(
        (i for i in range(index + 1, len(messages)) if messages[i].get("role") == "assistant"), None
    )
    if following is None:
        whole, probed = text, template.render([*probe, *messages[index + 1 :]])
    else:
        whole = template.render(messages[:following], add_generation_prompt=True)
        probed = template.render([*probe, *messages[index + 1 : following]], add_generation_prompt=True)
    before, found, after = probed.rpartition(_PROBE)
    if (
        not found
        or not whole.endswith(after)
        or not text.startswith(whole)
        or len(whole) - len(after) < len(prompt)
    ):
        raise ModelError("the chat template changes an answer beyond recognition", hint=_HINT)
    header = before[len(prompt) :] if before.startswith(prompt) else ""
    if any(mark in header for mark in turn_marks):
        raise ModelError(f"the chat template's prompt for an answer lacks {header!r}", hint=_HINT)
    # With nothing after it, what follows an answer can only end it; elsewhere the same text means the same.
    end = _up_to_mark(template.render(probe).rpartition(_PROBE)[2], marks)
    return len(prompt), len(whole) - len(after) + (len(end) if after.startswith(end) else 0)


def end_of_turn(template: ChatTemplate, marks: Iterable[str]) -> str:
    """What the template puts after an answer, up to and with the token that ends the turn."""
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _PROBE}]
    return _up_to_mark(template.render(turns).rpartition(_PROBE)[2], marks)


def _up_to_mark(after: str, marks: Iterable[str]) -> str:
    """``after`` up to and with its first added token; without one, its text before blank space."""
    ends = [after.index(mark) + len(mark) for mark in marks if mark in after]
    if ends:
        return after[: min(ends)]
    return re.match(r"\S*", after).group()  # pyright: ignore[reportOptionalMemberAccess]  (matches always)


def _keeps_reasoning(message: Message, written: str) -> bool:
    """Whether the thoughts of a message, if it has any, are part of what was ``written``."""
    thoughts = [message["reasoning_content"]] if message.get("reasoning_content") else []
    thoughts += _THOUGHT.findall(message.get("content") or "")
    return all(thought.strip() in written for thought in thoughts)


def _common(a: str, b: str) -> int:
    """Length of the common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
