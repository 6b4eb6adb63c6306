"""Writes answers as the OpenAI API's chat completions and completions, whole and streamed."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

import orjson

from stillhouse.models import TokenLogprob
from stillhouse.serve.api.logprobs import LogprobFormatter, logprob_formatter
from stillhouse.serve.context import ServerContext
from stillhouse.serve.engines.base import TextDelta
from stillhouse.serve.generation.answers import AnswerPart, GeneratedAnswer
from stillhouse.serve.generation.choices import ChoiceGenerations
from stillhouse.serve.metrics import TokenUsage
from stillhouse.serve.streaming import error_event


class ApiWriter:
    """What chat completions and completions have in common: ids, usage, and the frame around choices.

    Args:
        include_usage: whether a stream ends with the usage.
    """

    media_type = "text/event-stream"
    object_type = chunk_type = id_prefix = ""

    def __init__(self, model: str, *, include_usage: bool) -> None:
        self._include_usage = include_usage
        self._fields = {
            "id": self.id_prefix + secrets.token_hex(12),
            "created": int(time.time()),
            "model": model,
        }
        self._usage = TokenUsage(0)
        self._answers: Sequence[Any] = ()

    def begin(self, generations: ChoiceGenerations) -> bytes:
        """Remembers the answers; the first events come with the first delta."""
        self._usage, self._answers = generations.usage, generations.answers
        return b""

    def end(self) -> bytes:
        """Returns the usage, if requested, and the mark of the end."""
        usage = self._chunk([], usage=usage_object(self._usage)) if self._include_usage else b""
        return usage + b"data: [DONE]\n\n"

    def error(self, message: str) -> bytes:
        """Returns the event of an error."""
        return error_event(message)

    def whole(self) -> bytes:
        """Returns the whole answer."""
        choices = [self._whole_choice(answer) for answer in self._answers]
        return orjson.dumps({
            **self._fields, "object": self.object_type, "choices": choices,
            "usage": usage_object(self._usage),
        })  # fmt: skip

    def _whole_choice(self, answer: Any) -> dict[str, Any]:
        raise NotImplementedError

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        """Returns an event with some choices."""
        chunk = {**self._fields, "object": self.chunk_type, "choices": choices, **more}
        return b"data: " + orjson.dumps(chunk) + b"\n\n"


def usage_object(usage: TokenUsage) -> dict[str, Any]:
    """Returns the API's `usage` object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


class ChatCompletionWriter(ApiWriter):
    """Writes chat completions.

    Args:
        context: gives the formatter of log-probabilities; None if they were not requested.
    """

    object_type, chunk_type, id_prefix = "chat.completion", "chat.completion.chunk", "chatcmpl-"

    def __init__(self, model: str, *, include_usage: bool, context: ServerContext | None) -> None:
        super().__init__(model, include_usage=include_usage)
        self._context = context
        self._formatter: LogprobFormatter | None = None
        self._opened: set[int] = set()
        self._calls: dict[int, int] = {}
        """Index of an answer -> number of its tool calls so far."""

    def begin(self, generations: ChoiceGenerations) -> bytes:
        """Remembers the answers, and chooses the formatter."""
        if self._context:
            self._formatter = logprob_formatter(self._context, generations.engine)
        return super().begin(generations)

    def add(self, answer: GeneratedAnswer, delta: TextDelta) -> bytes:
        """Returns the chunks of a delta, after the first of its choice, which holds the role."""
        choices = []
        if answer.index not in self._opened:
            self._opened.add(answer.index)
            choices.append(_choice(answer, {"role": "assistant", "content": ""}))
        first = len(choices)
        for part in answer.add(delta):
            choices += self._part_choices(answer, part)
        logprobs = [self._formatter.for_chat(token) for token in delta.logprobs] if self._formatter else []
        if logprobs and len(choices) == first:
            choices.append(_choice(answer, {}))
        if logprobs:
            choices[first]["logprobs"] = {"content": logprobs}
        if answer.finish_reason:
            choices.append(_choice(answer, {}) | _end(answer))
        return b"".join(self._chunk([choice]) for choice in choices)

    def _part_choices(self, answer: GeneratedAnswer, part: AnswerPart) -> list[dict[str, Any]]:
        """Returns one chunk for text, and two for a tool call: its name, then its arguments."""
        if part.call is None:
            field = "reasoning_content" if part.kind == "reasoning" else "content"
            return [_choice(answer, {field: part.text})]
        index = self._calls.get(answer.index, 0)
        self._calls[answer.index] = index + 1
        head = {"index": index, "id": part.call.id, "type": "function"}
        named = {**head, "function": {"name": part.call.name, "arguments": ""}}
        arguments = {"index": index, "function": {"arguments": part.call.arguments}}
        return [_choice(answer, {"tool_calls": [named]}), _choice(answer, {"tool_calls": [arguments]})]

    def _whole_choice(self, answer: GeneratedAnswer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.content}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.tool_calls:
            message["content"] = message["content"] or None
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in answer.tool_calls
            ]
        logprobs = None
        if self._formatter:
            logprobs = {"content": [self._formatter.for_chat(token) for token in answer.logprobs]}
        return {
            "index": answer.index,
            "message": message,
            "logprobs": logprobs,
            **_end(answer),
        }


def _end(answer: GeneratedAnswer) -> dict[str, Any]:
    """Why an answer ended: `stop_reason` is the stop sequence, as in vLLM's API, if one ended it."""
    ended = {"finish_reason": answer.finish_reason}
    return ended | ({"stop_reason": answer.stop_sequence} if answer.stop_sequence else {})


def _choice(answer: GeneratedAnswer, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": answer.index, "delta": delta, "logprobs": None, "finish_reason": None}


class CompletionWriter(ApiWriter):
    """Writes completions. Their answers write themselves (:class:`CompletionChoice`)."""

    object_type = chunk_type = "text_completion"
    id_prefix = "cmpl-"

    def add(self, answer: CompletionChoice, delta: TextDelta) -> bytes:
        """Returns the chunk of a delta, if it contains anything."""
        return b"".join(self._chunk([choice]) for choice in answer.add(delta))

    def _whole_choice(self, answer: CompletionChoice) -> dict[str, Any]:
        return answer.whole()


class CompletionChoice:
    """One choice of a completion, built delta by delta.

    Args:
        logprob_formatter: None if log-probabilities were not requested.
        echo: ids and text of the prompt, which precede the answer.
        prompt_only: the answer itself is left out (`max_tokens` 0 with `echo`).
    """

    def __init__(
        self,
        index: int,
        *,
        logprob_formatter: LogprobFormatter | None,
        echo: tuple[Sequence[int], str] | None,
        prompt_only: bool,
    ) -> None:
        self.index, self._formatter, self._prompt_only = index, logprob_formatter, prompt_only
        self._text = ""
        self._prompt_ids, self._prompt_text = echo or ((), "")
        self._tokens: list[TokenLogprob | None] = []
        self._ids: list[int] = []
        self.finish_reason: str | None = None
        self._is_first = True

    def add(self, delta: TextDelta) -> list[dict[str, Any]]:
        """Returns the chunks of a delta."""
        text, tokens, text_offset = "", list[TokenLogprob | None](), len(self._text)
        if self._is_first and self._prompt_ids:
            text, tokens = self._prompt_text, [None, *delta.prompt_logprobs]
        self._is_first = False
        if not self._prompt_only:
            text += delta.text
            tokens += delta.logprobs
        ids = self._prompt_ids[:1] if tokens[:1] == [None] else ()
        ids = [*ids, *(token.id for token in tokens if token)]
        self._text += text
        self._tokens += tokens
        self._ids += ids
        self.finish_reason = "length" if self._prompt_only and delta.finish_reason else delta.finish_reason
        if not (text or tokens or delta.finish_reason):
            return []
        logprobs = None
        if self._formatter and tokens:
            logprobs = self._formatter.for_completion(tokens, ids, text_offset)
        return [self._choice(text, logprobs)]

    def whole(self) -> dict[str, Any]:
        """Returns the finished choice."""
        logprobs = self._formatter.for_completion(self._tokens, self._ids, 0) if self._formatter else None
        return self._choice(self._text, logprobs)

    def _choice(self, text: str, logprobs: Any) -> dict[str, Any]:
        return {
            "index": self.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": self.finish_reason,
        }
