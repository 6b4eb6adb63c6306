"""Reads the answer in an API's JSON: its text, thoughts, finish reason, usage and log-probabilities.

Content is text or a list of parts, and thoughts have any of several names. A part that is neither text nor
thought (an image, a tool's result) is an error rather than a gap in the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stillhouse.models.chat.reasoning import split_reasoning
from stillhouse.models.finish_reasons import LENGTH, UNKNOWN, finish_class, normalised
from stillhouse.models.types import Reply, Request

REASONING_FIELDS = (
    "reasoning_content",
    "reasoning",
    "thinking",
    "thought",
    "thinking_blocks",
    "reasoning_details",
)
"""Fields of a message that hold its thoughts; the first that is not empty counts."""
_TEXT_PARTS = ("text", "output_text", "refusal")
_THOUGHT_PARTS = ("thinking", "reasoning", "thought", "reasoning_text", "reasoning.text", "reasoning.summary")
_HIDDEN_PARTS = ("redacted_thinking", "reasoning.encrypted")
"""Encrypted thoughts, which nobody but the provider can read."""
_CHARACTERS_PER_TOKEN = 4

Kind = Literal["text", "thought"]


@dataclass(frozen=True)
class Completion:
    """The continuation of a text, without a chat template."""

    text: str
    """The generated text; with echo, the prompt as the server read it."""
    logps: list[float | None] | None
    """Log-probabilities of the text's tokens in nats; None where the server sends none. A token's is None for
    the first one, which follows nothing, and where the server sends null."""
    tokens: int
    """Prompt and generated tokens, as the provider counts them."""


@dataclass(frozen=True)
class StreamedPiece:
    """The next piece of an answer that an API streams."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    """In one of the last pieces; None before."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Both 0 in pieces without a usage report."""


def read_reply(
    request: Request, data: dict[str, Any], choice: dict[str, Any], headers: Any, not_sent: Sequence[str]
) -> Reply:
    """The answer with the types of a corpus.

    Args:
        not_sent: sampling settings that the request did not have.

    Raises:
        ValueError, TypeError, AttributeError: the server sends another form.
    """
    text, reasoning = _read_message(choice["message"])
    if not reasoning:
        text, reasoning = split_reasoning(text)
    usage = data.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    prompt_characters = sum(len(m.get("content") or "") for m in request.messages)
    answer_characters = len(text) + len(reasoning or "")
    reported = _count(usage.get("completion_tokens"))
    return Reply(
        text=text,
        reasoning=reasoning,
        finish_reason=_finish_reason(choice.get("finish_reason"), reported, request.sampling.max_tokens),
        # Budgets need a number even from servers that report none.
        prompt_tokens=_count(usage.get("prompt_tokens")) or -(-prompt_characters // _CHARACTERS_PER_TOKEN),
        completion_tokens=reported or -(-answer_characters // _CHARACTERS_PER_TOKEN),
        request_id=headers.get("x-request-id") or _name(data.get("id")),
        top_logprobs=(choice.get("logprobs") or {}).get("content"),
        model=_name(data.get("model")),
        not_sent=tuple(not_sent),
    )


def read_completion(data: dict[str, Any], prompt: str) -> Completion:
    """The first choice of a text completion.

    Raises:
        LookupError, TypeError, ValueError, AttributeError: there is none, or it has another form.
    """
    choice, usage = data["choices"][0], data.get("usage") or {}
    values = (choice.get("logprobs") or {}).get("token_logprobs")
    logps = None if values is None else [None if value is None else float(value) for value in values]
    text = _joined(_parts(choice.get("text"), "text"), "text")
    return Completion(
        text, logps, _count(usage.get("total_tokens")) or -(-len(prompt + text) // _CHARACTERS_PER_TOKEN)
    )


def read_chunk(chunk: Any) -> StreamedPiece | None:
    """The piece in a chunk of a stream; None where it has no content."""
    usage, choice = getattr(chunk, "usage", None), chunk.choices[0] if chunk.choices else None
    if choice is None and usage is None:
        return None
    delta = getattr(choice, "delta", None)
    text, reasoning = _read_message(delta.model_dump() if delta else {})
    reason = getattr(choice, "finish_reason", None)
    return StreamedPiece(
        text=text,
        reasoning=reasoning or "",
        finish_reason=None if reason is None else normalised(_name(reason)),
        prompt_tokens=_count(getattr(usage, "prompt_tokens", 0)),
        completion_tokens=_count(getattr(usage, "completion_tokens", 0)),
    )


def _read_message(message: Mapping[str, Any]) -> tuple[str, str | None]:
    """The text and the thoughts of a message, or of a piece of one."""
    parts = list(_parts(message.get("content"), "text"))
    # A refusal is an answer like any other: filters decide what to do with it.
    text = _joined(parts, "text") or _joined(_parts(message.get("refusal"), "text"), "text")
    return text, _joined(parts, "thought") or _thoughts(message)


def _thoughts(message: Mapping[str, Any]) -> str | None:
    for field in REASONING_FIELDS:
        if text := _joined(_parts(message.get(field), "thought"), "thought"):
            return text
    return None


def _joined(parts: Iterable[tuple[Kind, str]], kind: Kind) -> str:
    return "".join(text for found, text in parts if found == kind)


def _parts(content: Any, kind: Kind) -> Iterator[tuple[Kind, str]]:
    """The texts of a content, each with its kind.

    Args:
        kind: of a plain text, and of a part that does not say what it is.
    """
    if isinstance(content, str):
        yield kind, content
    elif isinstance(content, list):
        for part in content:
            yield from _parts(part, kind)
    elif isinstance(content, dict):
        yield from _part(content, kind)
    elif content is not None:
        raise TypeError(f"the content is not text but {content!r:.60}")


def _part(part: dict[str, Any], kind: Kind) -> Iterator[tuple[Kind, str]]:
    name = part.get("type")
    if name in _HIDDEN_PARTS:
        return
    if name in _THOUGHT_PARTS or part.get("thought") is True:  # Gemini marks a text part as a thought
        kind = "thought"
    elif name in _TEXT_PARTS:
        kind = "text"
    elif name is not None:
        raise TypeError(f"the content has a part of type {name!r}, which is not text")
    fields = (*_TEXT_PARTS, *_THOUGHT_PARTS, "summary", "content")
    inner = next((part[field] for field in fields if isinstance(part.get(field), str | list)), None)
    if inner is None:
        raise TypeError(f"the content has a part without text: {part!r:.60}")
    for _, text in _parts(inner, kind):
        yield kind, text


def _finish_reason(reason: Any, completion_tokens: int, max_tokens: int) -> str:
    found = normalised(_name(reason))
    # A server that gives no reason, or a word of its own, still tells a cut answer by its length.
    if finish_class(found) == UNKNOWN and completion_tokens >= max_tokens:
        return LENGTH
    return found


def _name(value: Any) -> str | None:
    """A name as text, whatever JSON type the server sends."""
    return None if value is None else str(value)


def _count(value: Any) -> int:
    """Tokens as a number that a corpus can hold; 0 where the server sends none, or no number."""
    try:
        count = int(value or 0)
    except (TypeError, ValueError, OverflowError):
        return 0
    return count if 0 <= count < 2**31 else 0
