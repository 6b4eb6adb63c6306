"""Answers under construction: text deltas become parts (text, reasoning, tool calls)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stillhouse.models import ReasoningStream, TokenLogprob
from stillhouse.serve.engines.base import TextDelta
from stillhouse.serve.generation.tool_parser import ParsedCall, ToolCallParser


@dataclass(frozen=True)
class AnswerPart:
    """The next part of an answer: text, reasoning, or one complete tool call."""

    kind: Literal["content", "reasoning", "tool_call"]
    text: str = ""
    """Empty for a tool call."""
    call: ParsedCall | None = None


class GeneratedAnswer:
    """One answer of a chat, built delta by delta.

    Args:
        index: its number among the choices of a request.
        starts_in_reasoning: whether the prompt ends with `<think>`.
        tool_parser: finds tool calls in the answer; None if it can have none.
    """

    def __init__(
        self, index: int, *, starts_in_reasoning: bool, tool_parser: ToolCallParser | None = None
    ) -> None:
        self.index = index
        self.content = self.reasoning = ""
        self.tool_calls: list[ParsedCall] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason: str | None = None
        """`stop`, `length` or `tool_calls`; None before the last delta."""
        self.stop_sequence: str | None = None
        """That ended the answer, where the engine knows it."""
        self._reasoning = ReasoningStream(inside=starts_in_reasoning)
        self._tool_parser = tool_parser

    def add(self, delta: TextDelta) -> list[AnswerPart]:
        """Returns the parts of a delta; none while its text may still become part of a mark."""
        is_last = delta.finish_reason is not None
        parts: list[AnswerPart] = []
        for kind, text in self._reasoning.add(delta.text, end=is_last):
            if kind == "content" and self._tool_parser:
                parts += map(_answer_part, self._tool_parser.add(text))
            else:
                parts.append(AnswerPart(kind, text))
        if is_last and self._tool_parser:
            parts += map(_answer_part, self._tool_parser.add("", end=True))
        for part in parts:
            if part.call:
                self.tool_calls.append(part.call)
            elif part.kind == "reasoning":
                self.reasoning += part.text
            else:
                self.content += part.text
        self.logprobs += delta.logprobs
        self.stop_sequence = delta.stop_sequence
        # Cut off by `length` after a call, the answer may miss further calls: the client must see that.
        ends_with_calls = self.tool_calls and delta.finish_reason == "stop"
        self.finish_reason = "tool_calls" if ends_with_calls else delta.finish_reason
        return parts


def _answer_part(parsed: str | ParsedCall) -> AnswerPart:
    return AnswerPart("content", parsed) if isinstance(parsed, str) else AnswerPart("tool_call", call=parsed)
