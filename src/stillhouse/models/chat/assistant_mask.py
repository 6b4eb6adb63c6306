"""Finds the spans of a rendered conversation that the assistant wrote.

A template's own `{% generation %}` marks decide where it has them. Otherwise the spans follow from how the
template behaves: a turn starts where its prompt (`add_generation_prompt`) ends, and ends where a second
rendering with another answer in its place continues in the same way. A last answer whose reasoning the
template drops is written as the model writes it after the prompt. No template is recognised by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stillhouse.errors import ModelError
from stillhouse.models.chat.end_marks import Turn, through_first_token
from stillhouse.models.chat.jinja_sandbox import (
    GENERATION_END,
    GENERATION_START,
    without_generation_marks,
)
from stillhouse.models.chat.reasoning import (
    REASONING_BLOCK,
    REASONING_END,
    REASONING_START,
    leading_reasoning,
)

if TYPE_CHECKING:
    from stillhouse.models.types import Message, RenderMessages

Span = tuple[int, int]

# Noncharacters that replace the answer and its reasoning in further renderings.
_PROBE, _THOUGHT_PROBE = "\ufdd4", "\ufdd5"
_HINT = "Set student.template: teacher, or mark the answers in the student's template with {% generation %}."
_NO_TOOLS = "Use a student whose template knows tools, or remove conversations with tool calls from the file."
_OPENED = re.compile(rf"{REASONING_START}(\s*)\Z")


def assistant_turns(
    render_marked: RenderMessages,
    messages: Sequence[Message],
    added_tokens: Sequence[str],
    turn_tokens: Sequence[str],
) -> tuple[str, list[Turn]]:
    """The rendered text, and the turns in it that are learned, in order.

    A turn with a `weight` of 0 is not learned. Nor is an earlier turn that the template renders otherwise
    than it was written, e.g. without its reasoning: it is context.

    Args:
        render_marked: renders with the template, `{% generation %}` marks left in.
        added_tokens: the tokenizer's added tokens.
        turn_tokens: those of them that delimit turns.

    Raises:
        ModelError: the last answer cannot be found, or not all of it.
    """
    answers = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
    learned = [i for i in answers if messages[i].get("weight") != 0]
    text = render_marked(messages)
    if GENERATION_START in text:
        text, spans = _spans_between_marks(text, added_tokens)
        if len(learned) < len(answers) and len(spans) != len(answers):
            raise ModelError("the chat template marks fewer answers than there are, so weights are lost")
        # Where the template leaves some unmarked, those are the earlier ones.
        marked = list(zip(reversed(answers), reversed(spans), strict=False))
        return text, [(i, *span) for i, span in reversed(marked) if i in learned]

    def render(messages: Sequence[Message], **variables: Any) -> str:
        return without_generation_marks(render_marked(messages, **variables))

    turns: list[Turn] = []
    if learned and learned[-1] == len(messages) - 1:
        text, span = _last_turn(render, messages, text, added_tokens, turn_tokens)
        turns.append((learned.pop(), *span))
    errors: list[ModelError] = []
    for index in reversed(learned):
        try:
            span = _turn_span(render, messages, index, text, added_tokens, turn_tokens)
        except ModelError as error:
            errors.append(error)
            continue
        if _is_complete(messages[index], text[slice(*span)]):
            turns.append((index, *span))
    if errors and not turns:
        raise errors[0]
    return text, turns[::-1]


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


def _last_turn(
    render: RenderMessages,
    messages: Sequence[Message],
    text: str,
    added_tokens: Sequence[str],
    turn_tokens: Sequence[str],
) -> tuple[str, Span]:
    """The conversation's text, and the span of its last message, an answer."""
    try:
        span = _turn_span(render, messages, len(messages) - 1, text, added_tokens, turn_tokens)
        if _is_complete(messages[-1], text[slice(*span)]):
            return text, span
        # Without its reasoning, the student would learn to answer without thinking.
        error = ModelError("the chat template leaves out the reasoning of the last answer", hint=_HINT)
    except ModelError as caught:
        error = caught
    prompt = render(messages[:-1], add_generation_prompt=True)
    written = (
        None if messages[-1].get("tool_calls") else _as_generated(render, messages, prompt, added_tokens)
    )
    if written is None and prompt.rstrip().endswith(REASONING_END) and messages[-1].get("reasoning_content"):
        raise ModelError(
            "the chat template's prompt closes the reasoning, so that of the last answer cannot be learned",
            hint="Set filter.thoughts: false, or train a student with another template.",
        )
    if written is None:
        raise error
    return prompt + written, (len(prompt), len(prompt) + len(written))


def _as_generated(
    render: RenderMessages, messages: Sequence[Message], prompt: str, added_tokens: Sequence[str]
) -> str | None:
    """What the model writes after ``prompt`` to give the last answer; None if the prompt opens no reasoning.

    For templates such as DeepSeek R1's, whose prompt ends with `<think>` and whose conversations have no
    reasoning: at generation, the model writes it, closes it, and answers. An answer without reasoning closes
    the block at once.
    """
    opened = _OPENED.search(prompt)
    if opened is None:
        return None
    answer, thoughts = messages[-1].get("content") or "", messages[-1].get("reasoning_content") or ""
    if not thoughts and (block := leading_reasoning(answer)):
        thoughts, answer = block[0], block[1] or ""
    probe = {"role": "assistant", "content": _PROBE, "reasoning_content": _THOUGHT_PROBE}
    probed = render([*messages[:-1], probe])
    closing = f"{opened[1]}{REASONING_END}{opened[1] * 2}"
    if probed.startswith(prompt + _THOUGHT_PROBE):
        closing = probed[len(prompt) + 1 :].partition(_PROBE)[0]
    end = through_first_token(probed.rpartition(_PROBE)[2], added_tokens)
    return thoughts.strip() + closing + answer.strip() + end


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
    try:
        return _span_by_probe(render, messages, index, text, prompt, added_tokens, turn_tokens)
    except ModelError:
        if not messages[index].get("tool_calls"):
            raise
    # Some templates refuse a tool's result without the call (gpt-oss).
    return len(prompt), _end_of_calls(render(messages[: index + 1]), text, prompt)


def _span_by_probe(
    render: RenderMessages,
    messages: Sequence[Message],
    index: int,
    text: str,
    prompt: str,
    added_tokens: Sequence[str],
    turn_tokens: Sequence[str],
) -> Span:
    """The span of an answer, which ends where a rendering with another one continues in the same way."""
    without_calls = {key: value for key, value in messages[index].items() if key != "tool_calls"}
    probe = [*messages[:index], {**without_calls, "content": _PROBE}]
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
    # A template with a prompt for answers (gpt-oss) lets the model write what follows it, marks and all.
    if any(token in header for token in turn_tokens) and prompt == render(messages[:index]):
        raise ModelError(f"the chat template's prompt for an answer lacks {header!r}", hint=_HINT)
    # Text after the last answer can only end it. The same text after an earlier answer ends that one, too.
    end = through_first_token(render(probe).rpartition(_PROBE)[2], added_tokens)
    return len(prompt), len(whole) - len(after) + (len(end) if after.startswith(end) else 0)


def _end_of_calls(until: str, text: str, prompt: str) -> int:
    """Where a turn of tool calls ends in ``text``; ``until`` is the conversation up to this turn."""
    until = until.rstrip()
    if not text.startswith(until) or len(until) <= len(prompt):
        raise ModelError("the chat template changes a tool call beyond recognition", hint=_HINT)
    return len(until)


def _is_complete(message: Message, rendered: str) -> bool:
    """Whether the message's reasoning, if it has any, is part of what the template ``rendered``."""
    reasoning = [message["reasoning_content"]] if message.get("reasoning_content") else []
    reasoning += REASONING_BLOCK.findall(message.get("content") or "")
    return all(block.strip() in rendered for block in reasoning)


def require_tools(text: str, messages: Sequence[Message], tools: Sequence[Any]) -> None:
    """Raises ModelError if the rendered ``text`` leaves out a tool, a call or a result."""
    for tool in tools:
        if tool["function"]["name"] not in text:
            raise ModelError(
                f"the chat template leaves out the tool {tool['function']['name']!r}", hint=_NO_TOOLS
            )
    for message in messages:
        for call in message.get("tool_calls") or ():
            function = call["function"]
            if any(word not in text for word in (function["name"], *function["arguments"])):
                raise ModelError(
                    f"the chat template leaves out the call of {function['name']!r}", hint=_NO_TOOLS
                )
        if message.get("role") == "tool":
            content = str(message.get("content")).strip()
            if content not in text and json.dumps(content, ensure_ascii=False)[1:-1] not in text:
                raise ModelError("the chat template leaves out the result of a tool", hint=_NO_TOOLS)


def _common_prefix(a: str, b: str) -> int:
    """Length of the common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
